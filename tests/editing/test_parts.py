"""A model's parts, remembered for as long as it is the same."""

from __future__ import annotations

import copy
import gc
from typing import Any

import pytest
import torch

from hf_longctx import PositionFree
from hf_longctx.anatomy import attention_layers, find_decoder, layer_type, layer_types
from hf_longctx.editing import parts
from hf_longctx.editing.parts import every_module, parts_of
from tests.tiny import tiny

FAMILIES = ("llama", "gemma3", "qwen3", "gpt_neox")


@pytest.mark.parametrize("family", FAMILIES)
def test_parts_are_what_looking_finds(family: str, monkeypatch: pytest.MonkeyPatch) -> None:
    model = tiny(family)
    decoder: Any = find_decoder(model)
    for _ in range(2):
        found, modules, everything = parts_of(model)
        assert found is decoder
        assert all(a is b for a, b in zip(modules, attention_layers(decoder), strict=True))
        monkeypatch.setattr(parts, "find_decoder", lambda model: pytest.fail("looked for again"))
    assert set(every_module(model)) == set(model.modules())
    assert set(everything) == set(decoder.modules())
    assert layer_types(modules) == [layer_type(module) for module in modules]


def test_a_changed_model_is_looked_at_anew() -> None:
    model = tiny("llama")
    decoder, before, _ = parts_of(model)
    decoder.layers[1] = copy.deepcopy(decoder.layers[1])
    assert parts_of(model)[1][1] is decoder.layers[1].self_attn is not before[1]
    del decoder.layers[-1]
    assert len(parts_of(model)[1]) == len(before) - 1
    with PositionFree().on(model):
        assert all(a is b for a, b in zip(parts_of(model)[1], attention_layers(decoder), strict=True))
    other = copy.deepcopy(model)
    assert parts_of(other)[0] is find_decoder(other) is not decoder


def test_a_model_without_parts_is_refused_every_time_and_none_is_kept_alive() -> None:
    for _ in range(2):
        with pytest.raises(ValueError, match="no decoder with rotary position embeddings"):
            parts_of(torch.nn.Linear(2, 2))
    decoder: Any = find_decoder(tiny("llama"))
    parts_of(decoder)  # its own decoder
    held = len(parts._known)
    del decoder
    gc.collect()
    assert len(parts._known) < held
