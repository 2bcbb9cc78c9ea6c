"""A model's parts, remembered for as long as it is the same."""

from __future__ import annotations

import copy
import gc
from typing import Any

import pytest
import torch

from hf_longctx import PositionFree
from hf_longctx.anatomy import attention_layers, find_tower, layer_type, layer_types
from hf_longctx.cache import parts
from hf_longctx.cache.parts import every_module, parts_of
from tests.tiny import tiny

FAMILIES = ("llama", "gemma3", "qwen3", "gpt_neox")


@pytest.mark.parametrize("family", FAMILIES)
def test_parts_are_what_looking_finds(family: str, monkeypatch: pytest.MonkeyPatch) -> None:
    model = tiny(family)
    tower: Any = find_tower(model)
    for _ in range(2):
        found, modules, everything = parts_of(model)
        assert found is tower
        assert all(a is b for a, b in zip(modules, attention_layers(tower), strict=True))
        monkeypatch.setattr(parts, "find_tower", lambda model: pytest.fail("looked for again"))
    assert set(every_module(model)) == set(model.modules())
    assert set(everything) == set(tower.modules())
    assert layer_types(modules) == [layer_type(module) for module in modules]


def test_a_changed_model_is_looked_at_anew() -> None:
    model = tiny("llama")
    tower, before, _ = parts_of(model)
    tower.layers[1] = copy.deepcopy(tower.layers[1])
    assert parts_of(model)[1][1] is tower.layers[1].self_attn is not before[1]
    del tower.layers[-1]
    assert len(parts_of(model)[1]) == len(before) - 1
    with PositionFree().on(model):
        assert all(a is b for a, b in zip(parts_of(model)[1], attention_layers(tower), strict=True))
    other = copy.deepcopy(model)
    assert parts_of(other)[0] is find_tower(other) is not tower


def test_a_model_without_parts_is_refused_every_time_and_none_is_kept_alive() -> None:
    for _ in range(2):
        with pytest.raises(ValueError, match="no decoder with rotary position embeddings"):
            parts_of(torch.nn.Linear(2, 2))
    tower: Any = find_tower(tiny("llama"))
    parts_of(tower)  # its own tower
    held = len(parts._known)
    del tower
    gc.collect()
    assert len(parts._known) < held
