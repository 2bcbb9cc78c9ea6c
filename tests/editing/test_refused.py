"""What an edit refuses, by name and with the cache left as it was."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from transformers import Cache, DynamicCache, StaticCache
from transformers.modeling_outputs import BaseModelOutputWithPast

from hf_longctx import LMInfinite, PositionFree, RopeScaling, StreamingLLM
from hf_longctx.editing import edit
from tests.editing.test_edit import EDITS, EVERYTHING, IDS, SCALED, check_exact, read
from tests.tiny import VOCAB, left_padded, logits_of, text, tiny


def _cache_of_static(model: Any) -> Cache:
    cache = StaticCache(config=model.config, max_cache_len=80)
    logits_of(model, torch.tensor([IDS]), past_key_values=cache, use_cache=True)
    return cache


def _two_rows(model: Any) -> Cache:
    cache = DynamicCache(config=model.config)
    logits_of(model, torch.tensor([IDS, IDS]), past_key_values=cache, use_cache=True)
    return cache


def _left_padded(model: Any) -> Cache:
    cache = DynamicCache(config=model.config)
    ids, mask = left_padded([torch.tensor(IDS[:50]), torch.tensor(IDS)])
    pos = (mask.cumsum(1) - 1).clamp(min=0)
    with torch.no_grad():
        model(ids[:1], attention_mask=mask[:1], position_ids=pos[:1], past_key_values=cache, use_cache=True)
    return cache


CACHES: dict[str, tuple[Callable[[Any], Any], str]] = {
    "no cache": (lambda model: None, "expected the Cache"),
    "empty": (lambda model: DynamicCache(config=model.config), "empty"),
    "static": (_cache_of_static, "StaticLayer: only dynamic caches"),
    "two rows": (_two_rows, "2 rows"),
    "other tokens": (lambda model: read(model, text(1, 60, 5)[0].tolist()), "it is of other tokens"),
    "padded": (_left_padded, "it is of other tokens"),
    "too short": (lambda model: read(model, IDS[:-2]), "holds 58 tokens and old_ids has 60"),
    "another model": (lambda model: read(tiny("llama", seed=3), IDS), "it is of other tokens"),
    "fewer layers": (lambda model: read(tiny("llama", num_hidden_layers=1), IDS), "1 layers and LlamaModel 2"),
    "other heads": (lambda model: read(tiny("llama", num_key_value_heads=4), IDS), "another model"),
}

CACHED_OUTPUT = BaseModelOutputWithPast.__dataclass_fields__


@pytest.mark.parametrize("what", CACHES)
def test_caches_that_cannot_be_edited(what: str) -> None:
    model = tiny("llama")
    make, message = CACHES[what]
    with pytest.raises(ValueError, match=message):
        edit(model, make(model), IDS, EDITS["insert"])


def test_a_cache_of_another_dtype() -> None:
    model = tiny("llama")
    cache = read(model, IDS)
    for layer in cache.layers:
        layer.keys, layer.values = layer.keys.bfloat16(), layer.values.bfloat16()
    before = [(layer.keys, layer.values) for layer in cache.layers]
    with pytest.raises(ValueError, match=r"keys in torch\.bfloat16, and the model makes them in torch\.float32"):
        edit(model, cache, IDS, EDITS["insert"])
    for layer, (keys, values) in zip(cache.layers, before, strict=True):
        assert layer.keys is keys
        assert layer.values is values


BAD_IDS: dict[str, tuple[Any, str]] = {
    "nothing": ([], "at least one token id"),
    "text": ("w5 w6", "expected token ids"),
    "a number": (5, "at least one token id"),
    "floats": ([0.5, 1.0], "at least one token id"),
    "two rows": ([IDS, IDS], "2 rows"),
    "too high": ([3, VOCAB], f"token id {VOCAB}"),
    "negative": ([3, -1], "token id -1"),
}


@pytest.mark.parametrize("what", BAD_IDS)
def test_ids_that_are_none(what: str) -> None:
    model = tiny("llama")
    ids, message = BAD_IDS[what]
    cache = read(model, IDS)
    with pytest.raises(ValueError, match=f"new_ids.*{message}"):
        edit(model, cache, IDS, ids)
    with pytest.raises(ValueError, match=f"old_ids.*{message}"):
        edit(model, cache, ids, IDS)


@pytest.mark.parametrize("repair", [-1, 1.5, True, "all"])
def test_repair_must_be_a_number_of_tokens(repair: Any) -> None:
    model = tiny("llama")
    with pytest.raises(ValueError, match="repair="):
        edit(model, read(model, IDS), IDS, IDS, repair)


def test_frequencies_that_move() -> None:
    dynamic = {"rope_type": "dynamic", "rope_theta": 1e4, "factor": 2.0, "original_max_position_embeddings": 512}
    tables = {**SCALED["longrope, one table"], "rope_theta": 1e4, "long_factor": [1.0, 2.0, 3.0, 5.0]}
    for rope in (dynamic, tables):
        model = tiny("llama", rope_parameters=rope)
        with pytest.raises(ValueError, match="changes its frequencies with the length read"):
            edit(model, read(model, IDS), IDS, EDITS["insert"])


def test_a_bounded_cache_that_has_evicted() -> None:
    for method in (LMInfinite(n_local=16), StreamingLLM(n_sink=2, window=16)):
        model = tiny("llama")
        with (
            method.on(model),
            pytest.raises(ValueError, match=r"60 tokens under .* cannot attend to evicted keys"),
        ):
            edit(model, read(model, IDS), IDS, EDITS["insert"])


def test_a_cache_of_another_method() -> None:
    model = tiny("llama")
    stock = read(model, IDS)
    with PositionFree().on(model):
        unrotated = read(model, IDS)
        with pytest.raises(ValueError, match="written under 'no method', and the model has PositionFree"):
            edit(model, stock, IDS, EDITS["insert"])
    with pytest.raises(ValueError, match="written under PositionFree"):
        edit(model, unrotated, IDS, EDITS["insert"])
    with RopeScaling(type="linear", factor=4.0).on(model), pytest.raises(ValueError, match="other rotary settings"):
        edit(model, stock, IDS, EDITS["insert"])
    check_exact(model, IDS, EDITS["insert"], EVERYTHING)


def test_a_model_that_caches_nothing() -> None:
    model = tiny("llama")
    cache = read(model, IDS)
    model.train()
    model.gradient_checkpointing_enable()
    if "cache" in CACHED_OUTPUT:  # from 5.24 on there is no checkpointing without gradients, and the cache stays
        edit(model, cache, IDS, EDITS["insert"])
        assert cache.get_seq_length() == len(EDITS["insert"]) - 1
        return
    with pytest.raises(ValueError, match=r"model\.eval\(\)"):
        edit(model, cache, IDS, EDITS["insert"])
