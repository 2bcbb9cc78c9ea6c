"""Which (query, key) pairs exist, as values: by position or by slot, whatever the kernel."""

# B batch, H query heads (or 1: the same for all), L queries, S keys, K chosen keys or blocks, M blocks of queries
from __future__ import annotations

from dataclasses import dataclass, replace
from typing import ClassVar

import torch
from torch import Tensor

ANY = 2**62  # no position and no distance is this long
DOCUMENT = 2**32  # positions of packed documents are `document * DOCUMENT + position`


class Mask:
    """Which pairs of queries and keys exist. A new one needs `pairs`; `span` spares kernels the keys outside of it."""

    by_position: ClassVar[bool] = (
        True  # pairs follow from positions alone, so layers with the same positions share them
    )

    def pairs(self, q_pos_BL: Tensor, k_pos_BS: Tensor) -> Tensor:
        """The pairs that exist, (B, L, S), whatever is said of positions below 0; (B, H, L, S) if by slot."""
        raise NotImplementedError

    def span(self, low: int, high: int) -> tuple[int, int]:
        """The lowest and the highest key position that queries at positions `low` to `high` can see."""
        return 0, ANY

    def at(self, rows: slice, columns: slice) -> Mask:
        """The mask of these queries and these slots alone."""
        return self


class ByDistance(Mask):
    """Pairs exist at the distances, query minus key, from the first of `distances` to below the second."""

    @property
    def distances(self) -> tuple[int, int]:
        """From the first number to below the second; `ANY` is no limit."""
        raise NotImplementedError

    def pairs(self, q_pos_BL: Tensor, k_pos_BS: Tensor) -> Tensor:
        """See `Mask`."""
        near, far = self.distances
        seen = q_pos_BL[:, :, None] >= (k_pos_BS + near)[:, None]
        return seen if far == ANY else seen & (q_pos_BL[:, :, None] < (k_pos_BS + far)[:, None])

    def span(self, low: int, high: int) -> tuple[int, int]:
        """See `Mask`."""
        near, far = self.distances
        return low - far + 1, high - near


@dataclass(frozen=True)
class Causal(ByDistance):
    """A query sees every key at or before its own position."""

    distances = 0, ANY


@dataclass(frozen=True)
class Window(ByDistance):
    """A query sees the `size` nearest positions up to its own: distances 0 to size - 1."""

    size: int

    @property
    def distances(self) -> tuple[int, int]:
        """See `ByDistance`."""
        return 0, self.size


@dataclass(frozen=True)
class BeyondWindow(ByDistance):
    """A query sees the positions that a `Window` of the same size leaves out: distances of `size` and more."""

    size: int

    @property
    def distances(self) -> tuple[int, int]:
        """See `ByDistance`."""
        return self.size, ANY


@dataclass(frozen=True)
class Full(ByDistance):
    """A query sees every key there is."""

    distances = -ANY, ANY


@dataclass(frozen=True)
class Packed(Mask):
    """Several documents in one row: a query sees keys of its own document, of those the ones that `inside` allows.

    Positions carry the document: `document * DOCUMENT + position`. Fast kernels also want the runs of rows, which
    `segments_of` reads from these: `Positions(pos, pos, segments=segments_of(pos, pos))`.
    """

    inside: Mask = Causal()

    def pairs(self, q_pos_BL: Tensor, k_pos_BS: Tensor) -> Tensor:
        """See `Mask`."""
        same = (q_pos_BL // DOCUMENT)[:, :, None] == (k_pos_BS // DOCUMENT)[:, None, :]
        return same & self.inside.pairs(q_pos_BL % DOCUMENT, k_pos_BS % DOCUMENT)

    def span(self, low: int, high: int) -> tuple[int, int]:
        """See `Mask`."""
        lowest, _ = self.inside.span(low % DOCUMENT, DOCUMENT - 1)
        _, highest = self.inside.span(0, high % DOCUMENT)
        first, last = low // DOCUMENT * DOCUMENT, high // DOCUMENT * DOCUMENT
        return first + max(lowest, 0), last + max(min(highest, DOCUMENT - 1), -1)


@dataclass(frozen=True)
class Chunk(Mask):
    """Positions are cut into chunks; a query sees the chunk that is `back` chunks before its own (0: its own).

    Args:
        size: Positions of a chunk.
        back: How many chunks before the query's own. Of its own chunk a query sees the keys up to its position.
        earlier: All chunks before that one as well.
    """

    size: int
    back: int = 0
    earlier: bool = False

    def pairs(self, q_pos_BL: Tensor, k_pos_BS: Tensor) -> Tensor:
        """See `Mask`."""
        chunks = (q_pos_BL // self.size)[:, :, None] - (k_pos_BS // self.size)[:, None, :]
        seen = chunks >= self.back if self.earlier else chunks == self.back
        return seen & (q_pos_BL[:, :, None] >= k_pos_BS[:, None, :])

    def span(self, low: int, high: int) -> tuple[int, int]:
        """See `Mask`."""
        first, last = (low // self.size - self.back) * self.size, (high // self.size - self.back) * self.size
        return 0 if self.earlier else first, min(last + self.size - 1, high)


@dataclass(frozen=True, eq=False)
class TopKeys(Mask):
    """A query of a head sees the keys at these slots: `index` is (B, H / shared, L, K), -1 where there is none.

    Args:
        index_BHLK: Whole numbers of any size.
        shared: Neighbouring heads that see the same slots.
    """

    index_BHLK: Tensor
    shared: int = 1
    by_position: ClassVar[bool] = False

    def pairs(self, q_pos_BL: Tensor, k_pos_BS: Tensor) -> Tensor:
        """See `Mask`."""
        return _chosen(self.index_BHLK.long(), k_pos_BS.shape[1]).repeat_interleave(self.shared, 1)

    def at(self, rows: slice, columns: slice) -> TopKeys:
        """See `Mask`."""
        index = self.index_BHLK[:, :, rows] - columns.start
        return TopKeys(index.masked_fill((index < 0) | (index >= columns.stop - columns.start), -1), self.shared)


@dataclass(frozen=True, eq=False)
class TopBlocks(Mask):
    """Blocks of queries see blocks of keys, chosen for each head; inside of them, what `inside` allows.

    Args:
        index_BHMK: For each block of queries the numbers of the blocks of keys that it sees; -1 where there is none.
        q_size: Queries of a block, in the order of the rows.
        k_size: Keys of a block, in the order of the slots.
        inside: Which pairs of these blocks exist, by position.
        row: The number of the first query, where this is a part of a mask (see `at`).
        slot: The number of the first slot.
    """

    index_BHMK: Tensor
    q_size: int
    k_size: int
    inside: Mask = Causal()
    row: int = 0
    slot: int = 0
    by_position: ClassVar[bool] = False

    def pairs(self, q_pos_BL: Tensor, k_pos_BS: Tensor) -> Tensor:
        """See `Mask`."""
        numbers = torch.arange(max(q_pos_BL.shape[1], k_pos_BS.shape[1]), device=self.index_BHMK.device)
        q_block_L = (numbers[: q_pos_BL.shape[1]] + self.row) // self.q_size
        k_block_S = (numbers[: k_pos_BS.shape[1]] + self.slot) // self.k_size
        blocks = _chosen(self.index_BHMK, (k_pos_BS.shape[1] + self.slot - 1) // self.k_size + 1)
        return blocks[:, :, q_block_L][..., k_block_S] & pairs(self.inside, q_pos_BL, k_pos_BS)

    def span(self, low: int, high: int) -> tuple[int, int]:
        """See `Mask`."""
        return self.inside.span(low, high)

    def at(self, rows: slice, columns: slice) -> TopBlocks:
        """See `Mask`."""
        return replace(self, row=self.row + rows.start, slot=self.slot + columns.start)


def _chosen(index: Tensor, count: int) -> Tensor:
    """(..., K) numbers as (..., count) of bool; -1 and what is not below `count` are no number."""
    mask = torch.zeros(*index.shape[:-1], count + 1, dtype=torch.bool, device=index.device)
    outside = (index < 0) | (index >= count)
    return mask.scatter_(-1, torch.where(outside, count, index), True)[..., :count]


def pairs(mask: Mask, q_pos_BL: Tensor, k_pos_BS: Tensor) -> Tensor:
    """The pairs that exist as (B, H, L, S), H = 1 where all heads have the same; padding and empty slots left out."""
    seen = mask.pairs(q_pos_BL, k_pos_BS)
    if not mask.by_position:
        return seen
    return (seen & (q_pos_BL[:, :, None] >= 0) & (k_pos_BS[:, None, :] >= 0))[:, None]
