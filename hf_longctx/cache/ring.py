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
    from .layers import SinkWindowLayer


ROOM = 1024  # columns of the smallest ring


class Ring:
    """What the ring layers of one cache share: the position in every column, and the columns that are written next.

    A row that waits (padding, while others read) stays where it is: what comes of it goes to the column that its next
    token will take, whose old token no later one sees. Columns are filled from the left; `filled` of them hold
    something in some row.

    Args:
        start: the first `start` columns are filled already, in every row.
        read: tokens read so far, padding included.
        waiting_moves: give padding a column as any other token, in step with the other rows.
    """

    def __init__(
        self, batch: int, size: int, device: torch.device, start: int, read: int, waiting_moves: bool = False
    ) -> None:
        self.pos_BN = torch.full((batch, size), -1, dtype=torch.long, device=device)
        self.column_BN = torch.zeros_like(self.pos_BN)  # where in the text each column's token was read
        self.next_B1 = torch.full((batch, 1), start, dtype=torch.long, device=device)  # the columns written next
        self.evicted_B = torch.full((batch,), -1, dtype=torch.long, device=device)  # the highest position overwritten
        self.read_11 = torch.full((1, 1), read, dtype=torch.long, device=device)
        self.filled = start
        self.whole = False  # read all columns, empty ones too: their number then never changes
        self._waiting_moves = waiting_moves
        self._moved_B1 = torch.zeros_like(self.next_B1)
        self._turning = False
        self._first: Any = None

    def tensors(self) -> list[Tensor]:
        """Everything that a token changes on the device."""
        return [self.pos_BN, self.column_BN, self.next_B1, self.evicted_B, self.read_11, self._moved_B1]

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
        """A token comes: its positions go into the columns that its keys will go to. Once for all layers."""
        if not self._turning:
            self._turning = True
            pos_B1 = pos_B1.expand_as(self.next_B1)
            real = pos_B1 >= 0
            self._moved_B1.copy_(torch.ones_like(real) if self._waiting_moves else real)
            self.evicted_B.copy_(torch.maximum(self.evicted_B, self.pos_BN.gather(1, self.next_B1)[:, 0]))
            self.pos_BN.scatter_(1, self.next_B1, pos_B1)
            self.column_BN.scatter_(1, self.next_B1, self.read_11.expand_as(self.next_B1))
            self.filled = min(self.filled + 1, self.size)

    def write(self, buffer_BGND: Tensor, new_BG1D: Tensor) -> None:
        """Put the token's keys, or values, into their columns."""
        new = new_BG1D.to(buffer_BGND.dtype)
        if len(new) == 1:
            buffer_BGND.index_copy_(2, self.next_B1[0], new)
        else:
            buffer_BGND.scatter_(2, self.next_B1[:, :, None, None].expand_as(new), new)

    def end(self) -> None:
        """The token has been through all layers."""
        if self._turning:
            self._turning = False
            self.next_B1.add_(self._moved_B1).remainder_(self.size)
            self.read_11.add_(1)

    def take_back(self) -> None:
        """Let the last token come again: it goes to the same columns."""
        self.next_B1.sub_(self._moved_B1).remainder_(self.size)
        self.pos_BN.scatter_(1, self.next_B1, -1)
        self.read_11.sub_(1)

    def reorder(self, layer: Any, beam_idx: Tensor) -> None:
        """Beams are reordered layer by layer, but the shared positions once: with the first layer."""
        self._first = self._first or layer
        if layer is self._first:
            for tensor in (self.pos_BN, self.column_BN, self.next_B1, self.evicted_B):
                tensor.copy_(tensor.index_select(0, beam_idx.to(tensor.device)))

    def in_order(self) -> Tensor:
        """(B, filled): each row's columns from the oldest to the newest."""
        columns = torch.arange(self.filled, device=self.next_B1.device)
        if self.filled < self.size:
            return columns.expand(len(self.next_B1), -1)
        return (columns + self.next_B1) % self.size


def roll(layers: Sequence[SinkWindowLayer]) -> bool:
    """Turn ordered layers of one cache into rings that share their positions. False where that cannot be (yet).

    The first tokens must be complete in every row: a ring never adds to them. Nor does it tell a hidden token that a
    mask may show again from one whose position was read anew: the one keeps its place, the other gives it up. A text
    shorter than the window gets columns for twice its length, and more when these are full.
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
    masked = {(layer.pos.device, len(layer.slots)): layer.slots for layer in layers if layer.masked}  # type: ignore[union-attr]
    if any(bool((slots.alive() & (slots.pos < 0)).any()) for slots in masked.values()):
        return False
    shared: dict[tuple[torch.device, int], Ring] = {}
    for layer in layers:
        kept = layer.slots
        where = kept.pos.device, min(layer.n_last + 1, max(ROOM, 2 * len(kept)))
        if where not in shared:
            ring = shared[where] = Ring(len(kept.pos), where[1], where[0], start=len(kept), read=layer.seen)
            ring.pos_BN[:, : len(kept)] = kept.pos
            assert kept.column is not None
            ring.column_BN[:, : len(kept)] = kept.column
            if layer.evicted_B is not None:
                ring.evicted_B.copy_(layer.evicted_B)
        layer.to_ring(shared[where])
    return True
