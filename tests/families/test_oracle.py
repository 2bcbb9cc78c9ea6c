"""LMInfinite equals a brute force over all pairs, whole and in chunks, left-padded, in each family of the oracle."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor

from hf_longctx import LMInfinite
from hf_longctx.anatomy import attention_layers, find_decoder
from hf_longctx.upstream.caches import cache_out, given_cache
from tests.families.census.building import build
from tests.families.census.looking import distance
from tests.families.census.scope import MODEL_TYPES
from tests.families.oracle import ROTATIONS, BruteForce
from tests.tiny import logits_of, text

N_GLOBAL, N_LOCAL = 3, 8
LENGTH, PADDED = 40, 6
# two orders of summation in fp32, through four layers
BOUND = 3e-6
IDS = text(2, LENGTH, seed=3)
MASK = torch.ones(2, LENGTH, dtype=torch.long)
MASK[0, :PADDED] = 0
REAL = MASK.bool()
POSITIONS = (MASK.cumsum(1) - 1).clamp(min=0)
HERE = [name for name in ROTATIONS if name in MODEL_TYPES]


def model_of(family: str) -> Any:
    """As the census builds it, with sinks that matter."""
    model = build(family, **ROTATIONS[family].settings)
    for module in attention_layers(find_decoder(model)):
        if isinstance(getattr(module, "sinks", None), torch.nn.Parameter):
            module.sinks.data = torch.linspace(-1, 2, len(module.sinks))
    return model


def whole(model: Any) -> Tensor:
    return logits_of(model, IDS, attention_mask=MASK, position_ids=POSITIONS, use_cache=False)[REAL]


def by_definition(model: Any, family: str, n_local: int) -> Tensor:
    positions = POSITIONS.masked_fill(~REAL, -1)
    with BruteForce(model, ROTATIONS[family], positions, N_GLOBAL, n_local).inside():
        return whole(model)


@torch.no_grad()
def in_chunks(model: Any) -> Tensor:
    """17 tokens, 14, and the others one at a time."""
    cache, rows = None, []
    for start, end in [(0, 17), (17, 31), *((i, i + 1) for i in range(31, LENGTH))]:
        part = slice(start, end)
        held = {} if cache is None else given_cache(model, cache)
        places = {"attention_mask": MASK[:, :end], "position_ids": POSITIONS[:, part]}
        out = model(IDS[:, part], **places, use_cache=True, **held)
        cache = cache_out(out)
        rows.append(out.logits)
    return torch.cat(rows, 1)[REAL]


@pytest.mark.parametrize("family", HERE)
def test_lm_infinite_is_its_definition(family: str) -> None:
    model = model_of(family)
    truth = by_definition(model, family, N_LOCAL)
    assert distance(truth, whole(model)) > 1e-3, "the window changes nothing"
    # what the stock model's own two ways differ by is more in Gemma 4 than in all others, 3e-6
    bound = max(BOUND, 1.5 * distance(in_chunks(model), whole(model)))
    with LMInfinite(n_global=N_GLOBAL, n_local=N_LOCAL).on(model):
        assert distance(whole(model), truth) < bound
        assert distance(in_chunks(model), truth) < bound


@pytest.mark.parametrize("family", HERE)
def test_the_brute_force_is_the_stock_model_where_its_window_holds_the_text(family: str) -> None:
    model = model_of(family)
    model.set_attn_implementation("eager")  # 5.17 lets sdpa drop a cap
    assert distance(by_definition(model, family, LENGTH), whole(model)) < BOUND
