"""Ranks together compute the attention of one process: output, log-sum-exp and all gradients, of every kind."""

from __future__ import annotations

from typing import Any
from unittest import mock

import pytest
import torch

from hf_longctx.ops.attend import attend
from hf_longctx.ops.branch import Branch
from hf_longctx.ops.masks import Packed
from hf_longctx.ops.positions import Positions

from .cases import HEADS, MASKS, PACKS, SCALE, Case, errors, inputs, on_a_rank, truth
from .pool import Pool

EXACT = {torch.float32: 1e-5, torch.float64: 1e-12}  # rounding: 3e-7 and 1e-15 were seen
SIMPLE = ["ring", "gather", "ulysses"]
ON_TWO = [
    Case(pack, kind, heads, mask)
    for pack in ["dense odd", "packed odd", "short whole", "rank without rows"]
    for kind in SIMPLE
    for heads in HEADS
    for mask in MASKS
]
ALSO_ON_TWO = [
    *(Case(pack, kind, (9, 3), mask, torch.float64) for pack in PACKS for kind in SIMPLE for mask in MASKS),
    *(
        Case(pack, "hybrid", (9, 3), mask, torch.float64, inner, outside)
        for pack in ["packed odd", "short whole"]
        for mask in ["causal", "window", "full"]
        for inner, outside in [(1, "ring"), (2, "gather")]
    ),
]
# each pack, kind, number of heads and mask meets each other one of another list once
ON_FOUR = [
    Case(
        pack, kind, HEADS[(n + m) % 3], mask, [torch.float32, torch.float64][(n + m) % 2], 2, ["ring", "gather"][m % 2]
    )
    for n, pack in enumerate(PACKS)
    for m, (kind, mask) in enumerate((kind, mask) for kind in [*SIMPLE, "hybrid"] for mask in MASKS)
]


AT_RANDOM = [
    Case(str(seed), kind, HEADS[seed % 3], list(MASKS)[seed % 4], torch.float64, 2, ["ring", "gather"][seed % 2])
    for seed in range(12)
    for kind in [*SIMPLE, "hybrid"]
]


@pytest.mark.parametrize("case", [*ON_TWO, *ALSO_ON_TWO], ids=str)
def test_two_ranks_are_one_process(two: Pool, case: Case) -> None:
    off = errors(case, two.run(on_a_rank, case))
    assert max(off.values()) < EXACT[case.dtype], off


@pytest.mark.parametrize("case", [*ON_FOUR, *AT_RANDOM], ids=str)
def test_four_ranks_are_one_process(four: Pool, case: Case) -> None:
    off = errors(case, four.run(on_a_rank, case))
    assert max(off.values()) < EXACT[case.dtype], off


def with_many_stretches(case: Case) -> Any:
    with mock.patch("hf_longctx.parallel.group_rows.MANY", 0):
        return on_a_rank(case)


@pytest.mark.parametrize("pack", PACKS)
def test_ulysses_of_many_short_documents(two: Pool, pack: str) -> None:
    """Rows are then put in order by one index, not stretch by stretch."""
    case = Case(pack, "ulysses", (9, 3), "causal", torch.float64)
    off = errors(case, two.run(with_many_stretches, case))
    assert max(off.values()) < EXACT[case.dtype], off


@pytest.mark.parametrize("kind", SIMPLE)
def test_half_precision_loses_no_more_than_one_process(two: Pool, kind: str) -> None:
    case = Case("short whole", kind, (9, 3), "causal", torch.bfloat16)
    off = errors(case, two.run(on_a_rank, case))
    assert max(off.values()) < 1e-2, off  # 8 bits of inputs, outputs and gradients: 4e-3 was seen


@pytest.mark.parametrize("mask", MASKS)
@pytest.mark.parametrize("pack", ["dense odd", "packed odd"])
def test_attend_in_one_process_is_the_same_truth(pack: str, mask: str) -> None:
    case = Case(pack, "", (9, 3), mask)
    q, k, v, grad = inputs(case)
    for x in (q, k, v):
        x.requires_grad_()
    code = case.layout(1).codes_T[None]
    out = attend([Branch(q, k, v, Positions(code, code), Packed(MASKS[mask]))], scale=SCALE)
    out.backward(grad)
    right = truth(pack, (9, 3), mask)
    for x, name in ((out, "out"), (q.grad, "dq"), (k.grad, "dk"), (v.grad, "dv")):
        assert x is not None
        assert (x.detach().double() - right[name]).norm() / right[name].norm() < 1e-6
