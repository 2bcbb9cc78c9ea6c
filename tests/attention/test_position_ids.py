"""Position ids as callers write them: of any type of number, with gaps, from any number on, below 0 for padding."""

from __future__ import annotations

from itertools import pairwise
from typing import Any

import pytest
import torch
from torch import Tensor
from transformers import DynamicCache

import hf_longctx
from hf_longctx import CodeLookup, InfLLM, LMInfinite, PositionFree, StreamingLLM
from tests.contract.registry import close, same
from tests.tiny import left_padded, logits_of, text, tiny

IDS = text(1, 40, seed=1)
WIDE: dict[str, Any] = {  # the whole text in the window: what the stock model gives
    "lm_infinite": LMInfinite(n_global=4, n_local=400),
    "lm_infinite_top3": LMInfinite(n_global=4, n_local=400, top_k=3, top_k_from_layer=0),
    "code_lookup": CodeLookup(n_global=4, n_local=400),
    "infllm": InfLLM(n_global=4, n_local=200, block_size=8, top_k=2),
    "streaming_llm": StreamingLLM(window=400),
    "position_free": PositionFree(),
}
each_method = pytest.mark.parametrize("method", WIDE.values(), ids=WIDE)
GIVEN = {
    "int32": torch.arange(40, dtype=torch.int32),
    "int16": torch.arange(40, dtype=torch.int16),
    "fp32": torch.arange(40, dtype=torch.float32),
    "gaps": torch.arange(0, 80, 2),
    "from 100 on": torch.arange(100, 140),
}


def in_parts(model: Any, pos: Tensor) -> Tensor:
    cache = DynamicCache(config=model.config)
    parts = pairwise((0, 20, 21, 22, 40))  # chunks, and single tokens in a ring
    return torch.cat(
        [logits_of(model, IDS[:, s:t], position_ids=pos[:, s:t], past_key_values=cache) for s, t in parts], 1
    )


@pytest.mark.parametrize("family", ["llama", "gemma3"])
@pytest.mark.parametrize("given", GIVEN)
@each_method
def test_positions_of_any_type_are_those_of_the_stock_model(method: Any, given: str, family: str) -> None:
    pos = GIVEN[given][None]
    wanted, model = logits_of(tiny(family), IDS, position_ids=pos), tiny(family)
    method.apply(model)
    close(logits_of(model, IDS, position_ids=pos), wanted)
    close(in_parts(model, pos), wanted, "with a cache")


@each_method
def test_rows_that_are_told_minus_one_for_padding(method: Any) -> None:
    rows = [text(1, n, seed=n)[0] for n in (30, 13)]
    ids, mask = left_padded(rows)
    model = tiny()
    method.apply(model)
    batch = logits_of(model, ids, attention_mask=mask, position_ids=(mask.cumsum(1) - 1).int())
    for out, row in zip(batch, rows, strict=True):
        close(out[-len(row) :], logits_of(tiny(), row[None])[0])


@pytest.mark.parametrize("masked", [False, True])
@each_method
def test_positions_below_0_of_tokens_that_are_read_are_refused(method: Any, masked: bool) -> None:
    """Hidden tokens are told by them: the model read on without these."""
    model, first = tiny(), -1 if masked else -5
    method.apply(model)
    before = logits_of(model, IDS)
    seen = {"attention_mask": torch.tensor([[0, *[1] * 39]])} if masked else {}
    pos = torch.arange(first, first + 40)[None]
    pos[:, 0] = -9  # hidden, where there is a mask
    pos[:, 1] = first
    with pytest.raises(ValueError, match=rf"position_ids of {first if masked else -9} for a token that is read"):
        logits_of(model, IDS, position_ids=pos, **seen)
    same(logits_of(model, IDS), before)


@each_method
def test_fractions_are_refused(method: Any) -> None:
    model = tiny()
    method.apply(model)
    with pytest.raises(ValueError, match=r"no whole numbers.*RopeScaling"):
        logits_of(model, IDS, position_ids=torch.arange(40)[None] / 2)


def test_after_a_shared_prefix() -> None:
    model = tiny()
    wanted = logits_of(model, IDS)[:, 30:]
    with hf_longctx.shared_prefix(model, IDS[:, :30]) as prefix:
        pos = torch.arange(30, 40, dtype=torch.int32)[None]
        close(logits_of(model, IDS[:, 30:], past_key_values=prefix.cache(), position_ids=pos), wanted)
