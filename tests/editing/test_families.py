"""Edits of each way in which families rotate and attend: as a text that is read again, or refused with the reason.

Models of one layer, whose keys do not depend on what stands before: an edit is then exact without any repair.
"""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor
from transformers import DynamicCache

from hf_longctx import PositionFree
from hf_longctx.editing.edit import edit
from hf_longctx.upstream.caches import given_cache
from tests.contract.registry import fingerprint
from tests.families.census.looking import RIGHT, distance
from tests.families.table import HERE, model_of
from tests.tiny import logits_of, text

OLD = text(1, 60, seed=5)[0]
NEW = torch.cat([OLD[:20], text(1, 4, seed=6)[0], OLD[27:]])  # what follows moves to the left by 3
LATENT = "caches something that depends on positions in the place of values, as multi-head latent attention"
FULL = {"layer_types": ["full_attention"]}
# settings of a model with one layer
SERVED: dict[str, dict[str, Any]] = {
    "qwen2": FULL,
    "cohere": {},
    "glm": {},
    "phi": {},
    "stablelm": {},
    "persimmon": {},
    "gemma2": FULL,
    "gpt_oss": FULL,
    "gemma3n_text": {**FULL, "num_kv_shared_layers": 0},
    "gemma4_text": {**FULL, "num_kv_shared_layers": 0},
    "llama4_text": {**FULL, "no_rope_layers": [1]},
    "diffllama": {},
    "jetmoe": {},
    "falcon": {},
    "gptj": {},
    "codegen": {},
    "gpt_neox_japanese": {},
}
REFUSED = {
    "minicpm3": ({}, LATENT),
    "deepseek_v2": ({}, LATENT),
    "deepseek_v3": ({}, LATENT),
    "hunyuan_v1_dense": ({}, "it does more with rotated keys than cache them"),
    "gemma4_text": ({"num_hidden_layers": 4}, "only dynamic caches can be edited|or layers share keys"),
    "llama4_text": ({"num_hidden_layers": 4}, "across the chunks that its layers attend in"),
    "falcon_h1": ({"num_hidden_layers": 4}, "only dynamic caches can be edited"),
    "hrm_text": ({"num_hidden_layers": 4}, "it is another model's, or empty, or layers share keys"),
}


def one_layer(family: str, settings: dict[str, Any]) -> Any:
    return model_of(family, **{"num_hidden_layers": 1, **settings})


def read(model: Any, ids: Any) -> DynamicCache:
    cache = DynamicCache(config=model.config)
    logits_of(model, ids[None], use_cache=True, **given_cache(model, cache))
    return cache


def kept(cache: DynamicCache) -> list[Tensor]:
    """A copy of all keys and values; some layers have none."""
    found = [getattr(layer, name, None) for layer in cache.layers for name in ("keys", "values")]
    return [x.clone() for x in found if isinstance(x, Tensor)]


def next_logits(model: Any, cache: DynamicCache) -> Any:
    at = torch.tensor([[len(NEW) - 1]])
    return logits_of(model, NEW[None, -1:], position_ids=at, use_cache=True, **given_cache(model, cache))


@pytest.mark.parametrize("family", [name for name in SERVED if name in HERE])
@pytest.mark.parametrize("method", [None, PositionFree()], ids=["stock", "position_free"])
def test_an_edited_text_is_as_if_it_was_read_again(family: str, method: Any) -> None:
    model = one_layer(family, SERVED[family])
    if method is not None:
        method.apply(model)
    cache, expected = read(model, OLD), read(model, NEW[:-1])
    unedited = distance(cache.layers[0].keys[:, :, : len(NEW) - 1], expected.layers[0].keys)
    _, report = edit(model, cache, OLD, NEW, repair=0)
    assert report.moved == len(OLD) - 27 - 1
    assert unedited > 0.1 > RIGHT > distance(cache.layers[0].keys, expected.layers[0].keys)
    assert distance(next_logits(model, cache), next_logits(model, expected)) < RIGHT


@pytest.mark.parametrize("family", [name for name in REFUSED if name in HERE])
def test_what_cannot_be_edited_is_refused_with_the_reason_and_nothing_changed(family: str) -> None:
    settings, reason = REFUSED[family]
    model = one_layer(family, settings)
    cache, before = read(model, OLD), fingerprint(model)
    held = kept(cache)
    with pytest.raises(ValueError, match=reason):
        edit(model, cache, OLD, NEW, repair=0)
    for now, then in zip(kept(cache), held, strict=True):
        assert torch.equal(now, then)
    assert fingerprint(model) == before


@pytest.mark.parametrize("family", ["gemma4_text", "falcon_h1", "zamba2", "hrm_text", "llama4_text"])
def test_what_cannot_be_edited_is_refused_where_its_keys_are_not_rotated_too(family: str) -> None:
    settings = {"num_hidden_layers": 4}
    reason = REFUSED[family][1] if family in REFUSED else "only dynamic caches can be edited"
    with PositionFree().on(one_layer(family, settings)) as model:
        cache = read(model, OLD)
        with pytest.raises(ValueError, match=reason):
            edit(model, cache, OLD, NEW, repair=0)


@pytest.mark.parametrize("family", ["minicpm3", "deepseek_v2", "deepseek_v3"])
def test_latent_attention_can_be_edited_where_its_keys_are_not_rotated(family: str) -> None:
    if family not in HERE:
        pytest.skip(f"this transformers has no {family}")
    with PositionFree().on(one_layer(family, {})) as model:
        cache, expected = read(model, OLD), read(model, NEW[:-1])
        edit(model, cache, OLD, NEW, repair=0)
        assert distance(next_logits(model, cache), next_logits(model, expected)) < RIGHT
