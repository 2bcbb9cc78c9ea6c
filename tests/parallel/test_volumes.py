"""The volumes that recipes/accelerate/ calculates with are the bytes that ranks hand to torch."""

from __future__ import annotations

import pytest

from recipes.accelerate import volumes

from .cases import ALL_GATHER, DIM, PACKS, Case
from .pool import Pool
from .test_counts import EXCHANGE, REDUCE, SHIFT, count

TOKENS, RANKS = 64, 4
FP32 = 4
PACKS["even"] = [TOKENS], "all"


@pytest.mark.parametrize("heads", [(32, 8), (8, 8), (8, 2)])
@pytest.mark.parametrize(("kind", "inside"), [("ring", 1), ("gather", 1), ("ulysses", 4), ("hybrid", 2)])
def test_volumes(four: Pool, kind: str, inside: int, heads: tuple[int, int]) -> None:
    case = Case("even", kind, heads, "causal", inner=inside)
    model = volumes.Model("", 0, *heads, DIM, 0)
    expected = volumes.sent(model, TOKENS, RANKS, inside, number=FP32, kept=kind == "gather")
    for number, found in enumerate(zip(*four.run(counted, case), strict=True)):  # forward, backward
        for one in found:
            # torch is handed what stays on the rank too, but by a ring
            keys = sum(one.get(SHIFT, [])) + (RANKS - 1) * sum(one.get(ALL_GATHER, []))
            keys += sum(one.get(REDUCE, [])) * (RANKS - 1) / RANKS
            travelling = sum(one.get(EXCHANGE, [])) * (inside - 1) / inside
            assert (keys, travelling) == (expected.keys[number], expected.heads[number])


def counted(case: Case) -> tuple[dict[str, list[int]], dict[str, list[int]]]:
    return count(case)  # with the pack of this module
