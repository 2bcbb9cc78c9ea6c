"""What blocks tell kernels besides positions is true of the positions: runs, same rows, consecutive rows.

Kernels for the CPU look at positions alone, those for GPUs at the runs.
"""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from hf_longctx.ops.masks import Causal, Full, Mask, Window, pairs
from hf_longctx.parallel import Layout
from hf_longctx.parallel.blocks import RankBlock
from hf_longctx.parallel.exchange import Exchange
from hf_longctx.parallel.gather import GatherExchange
from hf_longctx.parallel.halo import HaloExchange
from hf_longctx.parallel.peers import Peers
from hf_longctx.parallel.ring import RingExchange

from .cases import PACKS

KINDS: list[tuple[type[Exchange], Mask]] = [
    (RingExchange, Causal()),
    (RingExchange, Full()),
    (GatherExchange, Causal()),
    (GatherExchange, Full()),
    (HaloExchange, Window(1)),
    (HaloExchange, Window(11)),
    (HaloExchange, Window(70)),
]
CPU = torch.device("cpu")


class Rank(Peers):
    """One of several ranks, of which the others are not there."""

    def __init__(self, rank: int, size: int) -> None:
        self.group, self.rank, self.size = None, rank, size


def seen_by_runs(block: RankBlock, queries: int, keys: int) -> Tensor:
    """The pairs as a kernel finds them that knows the runs, and within each counts from its end."""
    segments = block.positions.segments
    assert segments is not None
    seen = torch.zeros(queries, keys, dtype=torch.bool)
    row = column = 0
    for n, (q, k) in enumerate(segments.lengths):
        assert (int(segments.cu_q_N[n]), int(segments.cu_k_N[n])) == (row, column)
        distance = torch.arange(q)[:, None] + (k - q) - torch.arange(k)
        inside = block.mask.inside
        here = torch.ones(q, k, dtype=torch.bool) if isinstance(inside, Full) else distance >= 0
        if isinstance(inside, Window):
            here &= distance < inside.size
        seen[row : row + q, column : column + k] = here
        row, column = row + q, column + k
    assert (row, column) == (queries, keys)
    assert (segments.longest_q, segments.longest_k) == tuple(
        max(sizes) for sizes in zip(*segments.lengths, strict=True)
    )
    return seen


@pytest.mark.parametrize("ranks", [1, 2, 3, 4])
@pytest.mark.parametrize("pack", PACKS)
@pytest.mark.parametrize(("kind", "inside"), KINDS)
def test_runs_say_the_same_as_positions(kind: type[Exchange], inside: Mask, pack: str, ranks: int) -> None:
    layout = Layout.of(PACKS[pack][0], ranks, PACKS[pack][1])
    for rank in range(ranks):
        for block in kind(layout, Rank(rank, ranks), inside, CPU).blocks:
            if block is None:
                continue
            q_pos, k_pos = block.positions.q_pos_BL, block.positions.k_pos_BS
            by_position = pairs(block.mask, q_pos, k_pos)[0, 0]
            assert torch.equal(seen_by_runs(block, q_pos.shape[1], k_pos.shape[1]), by_position)
            assert by_position.any(1).all(), "a block holds the rows only that see a key"
            if block.positions.same_rows:
                assert torch.equal(q_pos, k_pos)
                assert (q_pos.diff() > 0).all()
            if block.positions.consecutive:
                segments = block.positions.segments
                assert segments is not None
                for q, k in runs_of(q_pos, k_pos, segments.lengths):
                    assert (q.diff() == 1).all()
                    assert (k.diff() == 1).all()
                    assert q[-1] == k[-1]


def runs_of(q_pos: Tensor, k_pos: Tensor, lengths: tuple[tuple[int, int], ...]) -> list[tuple[Tensor, Tensor]]:
    """Positions of queries and keys of each run."""
    sides = [x[0].split(list(sizes)) for x, sizes in zip((q_pos, k_pos), zip(*lengths, strict=True), strict=True)]
    return list(zip(*sides, strict=True))
