"""A text in forwards that are given no positions: the tokens after a cache come after those that it has read."""

from __future__ import annotations

from itertools import pairwise
from typing import Any

import pytest
import torch
from torch import Tensor

from hf_longctx import LMInfinite, PositionFree
from hf_longctx.upstream.caches import cache_out, given_cache
from tests.families.table import model_of
from tests.hybrids import ANEW, HYBRIDS, hybrid
from tests.tiny import logits_of, text, tiny

HERE = [*(name for name in HYBRIDS if name not in ANEW), "minimax", "llama"]
ENDS = 12, 13, 14, 18, 19


def of(name: str) -> Any:
    return model_of(name) if name == "minimax" else hybrid(name)


def in_pieces(model: Any, ids: Tensor) -> Tensor:
    cache, parts = None, []
    for start, stop in pairwise((0, *ENDS)):
        given = {} if cache is None else given_cache(model, cache)
        with torch.no_grad():
            output = model(ids[:, start:stop], use_cache=True, **given)
        cache = cache_out(output)
        parts.append(output.logits)
    return torch.cat(parts, 1)


@pytest.mark.floor
@pytest.mark.parametrize("method", [LMInfinite(n_global=2, n_local=6), PositionFree()], ids=lambda m: m.name)
@pytest.mark.parametrize("name", HERE)
def test_a_text_in_pieces_without_positions_is_the_text(name: str, method: Any) -> None:
    stock, model, ids = of(name), of(name), text(2, ENDS[-1])
    try:
        method.apply(model)
    except ValueError as error:
        pytest.skip(str(error))
    truth = stock if isinstance(method, PositionFree) else model
    # fp32: a recurrent layer's scan in other blocks
    torch.testing.assert_close(in_pieces(model, ids), logits_of(truth, ids, use_cache=False), atol=1e-3, rtol=1e-3)


@pytest.mark.parametrize("length", [1, 3])
def test_a_model_that_does_not_count_on_is_told_what_to_pass(length: int) -> None:
    model, ids = tiny("llama"), text(1, 12)
    PositionFree().apply(model)
    forward = model.model.forward

    def anew(*args: Any, **kwargs: Any) -> Any:
        if kwargs.get("position_ids") is None:
            kwargs["position_ids"] = torch.arange(kwargs["input_ids"].shape[1])[None]
        return forward(*args, **kwargs)

    with pytest.MonkeyPatch.context() as patch, torch.no_grad():
        patch.setattr(model.model, "forward", anew)
        cache = cache_out(model(ids, use_cache=True))
        with pytest.raises(ValueError, match="position_ids were not given") as error:
            model(text(1, length, seed=1), use_cache=True, **given_cache(model, cache))
    assert f"which has read 12 tokens. Pass those of the new tokens: torch.arange(12, {12 + length})[None]" in str(
        error.value
    )
    more = torch.arange(12, 12 + length)[None]  # as it says; the cache is as it was before
    cache = cache_out(model(ids, use_cache=True))
    got = logits_of(model, text(1, length, seed=1), position_ids=more, **given_cache(model, cache))
    whole = logits_of(model, torch.cat([ids, text(1, length, seed=1)], 1), use_cache=False)
    torch.testing.assert_close(got, whole[:, 12:])
