"""Gradients through single tokens after cached ones are those of one forward over the whole text."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor
from transformers import DynamicCache

from hf_longctx import CodeLookup, LMInfinite, PositionFree, StreamingLLM
from hf_longctx.cache import SinkWindowLayer
from hf_longctx.sharing.prefix import shared_prefix
from hf_longctx.upstream.caches import given_cache
from tests.contract.registry import close
from tests.sharing.prefixes import DOCUMENT
from tests.tiny import left_padded, text, tiny

METHODS: dict[str, Any] = {
    "lm_infinite": LMInfinite(n_global=2, n_local=6),
    "code_lookup": CodeLookup(n_global=2, n_local=6, top_k=3),
    "lm_infinite top_k": LMInfinite(n_global=2, n_local=6, top_k=3, top_k_from_layer=1),
    "lm_infinite on the host": LMInfinite(n_global=2, n_local=6, top_k=3, top_k_from_layer=1, keys_on_host=True),
    "streaming_llm": StreamingLLM(n_sink=2, window=8),
    "position_free": PositionFree(),
}
SPLITS = ([12, 1, 1], [1] * 6, [4, 1, 8, 1, 1], [20, 1, 1, 1])


def in_pieces(model: Any, whole: Tensor, split: list[int], cache: Any, mask: Tensor | None = None) -> Tensor:
    """The logits of a text (ids or embeddings) that is read in pieces."""
    name, found, end = "input_ids" if whole.ndim == 2 else "inputs_embeds", [], 0
    for piece in whole.split(split, 1):
        end += piece.shape[1]
        seen = {} if mask is None else {"attention_mask": mask[:, :end]}
        found.append(model(**{name: piece}, **given_cache(model, cache), **seen).logits)
    return torch.cat(found, 1)


def gradients(model: Any, logits: Tensor) -> dict[str, Tensor]:
    model.zero_grad()
    logits.square().sum().backward()
    return {name: p.grad.clone() for name, p in model.named_parameters() if p.grad is not None}


def alike(got: dict[str, Tensor], expected: dict[str, Tensor]) -> None:
    assert got.keys() == expected.keys()
    for name, grad in expected.items():
        assert (got[name] - grad).norm() <= 1e-5 * grad.norm(), name  # fp32 sums in another order


@pytest.mark.parametrize("family", ["llama", "gemma3", "qwen3"])
@pytest.mark.parametrize("method", METHODS)
def test_single_tokens(method: str, family: str) -> None:
    model = tiny(family)
    METHODS[method].apply(model)
    for split in SPLITS:
        ids = text(2, sum(split))
        expected = model(ids, use_cache=False).logits
        got = in_pieces(model, ids, split, DynamicCache())
        close(got, expected)
        alike(gradients(model, got), gradients(model, expected))


@pytest.mark.parametrize("method", METHODS)
def test_padded_rows_and_one_weight(method: str) -> None:
    model = tiny().requires_grad_(False)
    METHODS[method].apply(model)
    model.model.layers[0].self_attn.k_proj.weight.requires_grad_(True)  # as an adapter's
    ids, mask = left_padded([text(1, 14)[0], text(1, 9, seed=2)[0]])
    real = mask[..., None].bool()
    expected = model(ids, attention_mask=mask, use_cache=False).logits.masked_fill(~real, 0)
    got = in_pieces(model, ids, [11, 1, 1, 1], DynamicCache(), mask).masked_fill(~real, 0)
    close(got, expected)
    alike(gradients(model, got), gradients(model, expected))


@pytest.mark.parametrize("method", METHODS)
def test_embeddings_that_are_learned(method: str) -> None:
    model = tiny().requires_grad_(False)
    METHODS[method].apply(model)
    soft = model.get_input_embeddings()(text(1, 10)).requires_grad_(True)

    def grad(logits: Tensor) -> dict[str, Tensor]:
        return {"embeddings": torch.autograd.grad(logits.square().sum(), soft)[0]}

    cache, ids = DynamicCache(), text(1, 3, seed=1)
    got = torch.cat([in_pieces(model, soft, [10], cache), in_pieces(model, ids, [1, 1, 1], cache)], 1)
    whole = torch.cat([soft, model.get_input_embeddings()(ids)], 1)
    expected = model(inputs_embeds=whole, use_cache=False).logits
    close(got, expected)
    alike(grad(got), grad(expected))


@pytest.mark.parametrize("method", [name for name in METHODS if name in ("lm_infinite", "streaming_llm")])
def test_rings_before_and_after(method: str) -> None:
    model, cache, ids = tiny(), DynamicCache(), text(1, 20)
    METHODS[method].apply(model)

    def rings() -> set[bool]:
        return {layer.ring is not None for layer in cache.layers if isinstance(layer, SinkWindowLayer)}

    with torch.no_grad():
        first = in_pieces(model, ids[:, :14], [12, 1, 1], cache)
        assert rings() == {True}
    learned = in_pieces(model, ids[:, 14:17], [1, 1, 1], cache)
    assert rings() == {False}
    with torch.no_grad():
        last = in_pieces(model, ids[:, 17:], [1, 1, 1], cache)
        assert rings() == {True}
    learned.sum().backward()  # what was read since has not written over it
    close(torch.cat([first, learned, last], 1), model(ids, use_cache=False).logits)


def test_single_tokens_after_a_shared_prefix() -> None:
    model, ids = tiny(), text(2, 8)
    with shared_prefix(model, DOCUMENT) as prefix:
        got = in_pieces(model, ids, [4, 1, 1, 1, 1], prefix.cache())
        expected = in_pieces(model, ids, [8], prefix.cache())
        close(got, expected)
        alike(gradients(model, got), gradients(model, expected))
