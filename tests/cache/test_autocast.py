"""A cache that was filled under autocast is continued outside of it, and the other way round, as by the stock model."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from typing import Any

import pytest
import torch
from torch import Tensor
from transformers import DynamicCache

from hf_longctx import CodeLookup, InfLLM, LMInfinite, PositionFree, StreamingLLM
from hf_longctx.cache import growing
from hf_longctx.ops import codes
from hf_longctx.upstream.caches import given_cache
from tests.tiny import logits_of, text, tiny

# those that look tokens up find all of them: which are the best is no matter of rounding then
METHODS: dict[str, Any] = {
    "lm_infinite": LMInfinite(n_global=2, n_local=8),
    "top_k": LMInfinite(n_global=2, n_local=8, top_k=200, top_k_from_layer=0),
    "code_lookup": CodeLookup(n_global=2, n_local=8, top_k=200, shortlist=200, gate=None),
    "infllm": InfLLM(n_global=2, n_local=8, block_size=4, top_k=50),
    "streaming_llm": StreamingLLM(n_sink=2, window=8),
    "position_free": PositionFree(),
}
Mode = Callable[[], AbstractContextManager[Any]]


def half() -> AbstractContextManager[Any]:
    return torch.autocast("cpu", torch.bfloat16)


def read_on(model: Any, modes: tuple[Mode, ...], pieces: tuple[int, ...]) -> Tensor:
    cache, found = DynamicCache(config=model.config), []
    for i, n in enumerate((30, *pieces)):
        with modes[i % len(modes)]():
            found.append(logits_of(model, text(2, n, seed=i), **given_cache(model, cache)).float())
    return torch.cat(found, 1)


@pytest.mark.parametrize("pieces", [(1,) * 12, (3,) * 12, (1, 1, 20, 1, 3, 1)], ids=["tokens", "chunks", "both"])
@pytest.mark.parametrize("modes", [(half,), (half, nullcontext), (nullcontext, half)], ids=["all", "out", "in"])
@pytest.mark.parametrize("method", METHODS.values(), ids=METHODS)
def test_a_cache_is_continued_in_the_other_precision(
    method: Any, modes: tuple[Mode, ...], pieces: tuple[int, ...], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(growing, "PIECE", 16)  # a text has several
    model = tiny()
    with method.on(model):
        # bf16 rounds O(3) logits by 1e-2 in each layer; the stock model is off by 0.05
        torch.testing.assert_close(
            read_on(model, modes, pieces), read_on(model, (nullcontext,), pieces), atol=0.15, rtol=0.0
        )


def test_scores_by_codes_are_as_exact_under_autocast() -> None:
    keys, queries = torch.randn(2, 40, 24, generator=torch.Generator().manual_seed(0)), torch.randn(2, 3, 5, 24)
    centre = codes.Centre.of(keys[:, :10])
    words, size = codes.encode(keys, centre)
    expected = codes.score(queries, words, size, centre)
    with half():
        got = codes.score(queries, words, size, centre)
    assert torch.equal(got, expected)
