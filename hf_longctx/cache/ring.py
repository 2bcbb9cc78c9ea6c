"""A bounded layer while single tokens are read: a ring of fixed buffers, written in place.

Keys are un-rotated and their positions stored, so their order is of no importance: the newest token overwrites the
oldest one. Nothing is copied, and every address stays, which is what CUDA graphs need.
"""

# B batch, G key/value heads, N columns of the ring, D head dim
from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

if TYPE_CHECKING:
    from .layers import BoundedLayer


ROOM = 1024  # columns of the smallest ring


class Ring:
    """What the ring layers of one cache share: the position in every column, and the column that is written next.

    All rows of a batch are written in step, so a column holds tokens of one age; a row's position there is its own, -1
    for padding. Columns are filled from the left; `filled` of them hold something.
    """

    def __init__(self, batch: int, size: int, device: torch.device) -> None:
        self.pos_BN = torch.full((batch, size), -1, dtype=torch.long, device=device)
        self.column = torch.zeros(1, dtype=torch.long, device=device)
        self.filled = 0
        self.whole = False  # read all columns, empty ones too: their number then never changes
        self._turning = False
        self._first: Any = None

    @property
    def size(self) -> int:
        return self.pos_BN.shape[1]

    def must_grow(self, most: int) -> bool:
        """Is it full, and smaller than the window of `most` tokens?"""
        return self.filled == self.size < most

    @property
    def readable(self) -> int:
        """How many columns a query has to look at."""
        return self.size if self.whole else self.filled

    def begin(self, pos_B1: Tensor) -> None:
        """A token comes: its positions go into the column that its keys will go to. Once for all layers."""
        if not self._turning:
            self._turning = True
            self.pos_BN.index_copy_(1, self.column, pos_B1.expand(len(self.pos_BN), 1))
            self.filled = min(self.filled + 1, self.size)

    def end(self) -> None:
        """The token has been through all layers."""
        if self._turning:
            self._turning = False
            self.column.add_(1).remainder_(self.size)

    def reorder(self, layer: Any, beam_idx: Tensor) -> None:
        """Beams are reordered layer by layer, but the shared positions once: with the first layer."""
        self._first = self._first or layer
        if layer is self._first:
            self.pos_BN.copy_(self.pos_BN.index_select(0, beam_idx.to(self.pos_BN.device)))

    def in_order(self) -> Tensor:
        """The filled columns from the oldest to the newest."""
        columns = torch.arange(self.filled, device=self.column.device)
        return (columns + self.column) % self.size if self.filled == self.size else columns


def roll(layers: Sequence[BoundedLayer]) -> bool:
    """Turn ordered layers of one cache into rings that share their positions. False where that cannot be (yet).

    The first tokens must be complete in every row: a ring never adds to them. A text shorter than the window gets
    columns for twice its length, and more when these are full.
    """
    rings = [layer.ring for layer in layers if layer.ring is not None]
    if len(rings) == len(layers):
        if not any(ring.must_grow(layer.n_last + 1) for ring, layer in zip(rings, layers, strict=True)):
            return True
        for layer in layers:
            layer.to_order()
    if any(not layer.is_initialized or layer.ring is not None for layer in layers):
        return False
    if not all(layer.full for layer in layers):
        return False
    heads = {layer.head.pos.device: layer.head for layer in layers if layer.n_first and layer.head is not None}
    if any(layer.padded for layer in layers) and any(bool((head.pos < 0).any()) for head in heads.values()):
        return False
    shared: dict[tuple[torch.device, int], Ring] = {}
    for layer in layers:
        kept = layer.slots
        where = kept.pos.device, min(layer.n_last + 1, max(ROOM, 2 * len(kept)))
        if where not in shared:
            ring = shared[where] = Ring(len(kept.pos), where[1], where[0])
            ring.pos_BN[:, : len(kept)] = kept.pos
            ring.column.fill_(len(kept))
            ring.filled = len(kept)
        layer.to_ring(shared[where])
    return True
