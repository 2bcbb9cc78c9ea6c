"""Which columns of a block are each row of a table, and the sums that cards make by it, against torch's index_add_."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor

from hf_longctx.ops.kernels import KERNELS
from hf_longctx.parallel import attention, blocks, softmax, sums
from hf_longctx.parallel.blocks import RankBlock
from tests.ops.packs import plain_ops

from .cases import MASKS, SCALE, Case, errors, inputs, on_a_rank, ranks_of
from .pool import Pool


@pytest.mark.parametrize("numbers", [[0, 1, 2], [2, 3, 0, 1, 2], [5], [4, 4, 4, 1]])
def test_each_row_names_the_columns_that_are_it(numbers: list[int]) -> None:
    numbers_S = torch.tensor(numbers)
    found_RN = sums.sources_of(numbers_S, 7)
    assert found_RN.dtype == torch.int32
    assert found_RN.is_contiguous()
    named = [sorted(found_RN[:, row][found_RN[:, row] >= 0].tolist()) for row in range(7)]
    assert named == [(numbers_S == row).nonzero()[:, 0].tolist() for row in range(7)]


def by_sources(parts: list[Tensor], block: RankBlock, rows: int, dtype: torch.dtype) -> Tensor:
    """What the launch on a card computes, by torch."""
    dk, dv = parts
    both = torch.cat([torch.cat([dk, dv], -1), dk.new_zeros(1, dk.shape[1], 2 * dk.shape[2])]).to(dtype)
    return both[sums.sources(block, rows).long()].sum(0)  # the last row is the one that -1 names


def summed(case: Case) -> dict[str, Any]:
    """What this rank finds with gradients that are summed as on cards, and how often they were."""
    times = 0

    def counted(*given: Any) -> Tensor:
        nonlocal times
        times += 1
        return by_sources(*given)

    with pytest.MonkeyPatch.context() as patch:
        plain_ops(patch)
        patch.setattr(blocks, "choose", lambda *_: KERNELS["cuda_flash"])
        patch.setattr(softmax, "sum_rows", counted)
        return on_a_rank(case) | {"times": times}


@pytest.mark.parametrize("mask", ["causal", "window", "full"])
@pytest.mark.parametrize("kind", ["ring", "gather"])
@pytest.mark.parametrize("pack", ["dense odd", "packed odd", "short whole", "fewer tokens than ranks"])
def test_ranks_that_sum_so_are_one_process(two: Pool, pack: str, kind: str, mask: str) -> None:
    case = Case(pack, kind, (9, 3), mask, torch.float64)
    found = two.run(summed, case)
    assert sum(rank.pop("times") for rank in found) > 0
    off = errors(case, found)
    assert max(off.values()) < 1e-12, off


@pytest.mark.parametrize("kind", ["ring", "gather"])
def test_what_layers_share_is_there_before_them(two: Pool, kind: str) -> None:
    assert two.run(made_in_backward, Case("short whole", kind, (9, 3), "causal")) == [0, 0]


def made_in_backward(case: Case) -> int:
    """How often the sources of a table's rows are made although the exchange was prepared."""
    made: list[int] = []
    right = sums.sources_of

    def watched(numbers_S: Tensor, rows: int) -> Tensor:
        made.append(rows)
        return right(numbers_S, rows)

    with pytest.MonkeyPatch.context() as patch:
        plain_ops(patch)
        patch.setattr(blocks, "choose", lambda *_: KERNELS["cuda_flash"])
        patch.setattr(softmax, "sum_rows", by_sources)
        patch.setattr(sums, "_in_triton", lambda x: True)
        patch.setattr(sums, "sources_of", watched)
        ranks = ranks_of(case, 2)
        ranks.prepare(MASKS[case.mask])
        before = len(made)
        assert before
        q, k, v = (x[:, :, : ranks.layout.sizes[ranks.rank]].requires_grad_() for x in inputs(case)[:3])
        out, _ = attention(q, k, v, ranks, scale=SCALE)
        out.sum().backward()
        return len(made) - before
