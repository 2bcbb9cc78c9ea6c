"""Fixed buffers, written in place while single tokens are read: the newest token overwrites the oldest one.

The positions of keys are stored, so their order is of no importance. Nothing is copied, and every address stays, which
is what CUDA graphs need.
"""

# B batch, G key/value heads, N columns of the ring, D head dim
from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import torch
from torch import Tensor

from ..ops.kernels import ring as kernels
from ..ops.sealed import is_sealed


class Ring:
    """What the ring layers of one cache share: the position in every column, and the columns that are written next.

    A row that waits (padding, while others read) stays where it is: its keys go to the column that its next token will
    take, whose old token no later one sees. Columns are filled from the left; `filled` of them hold something in some
    row.

    Args:
        start: The first `start` columns are filled already, in every row.
        read: Tokens read so far, padding included.
        most: Columns that are enough however much is read; None: the ring must grow with the text.
        waiting_moves: Give padding a column as any other token, in step with the other rows.
    """

    def __init__(
        self,
        batch: int,
        size: int,
        device: torch.device,
        start: int,
        read: int,
        most: int | None = None,
        waiting_moves: bool = False,
    ) -> None:
        self.pos_BN = torch.full((batch, size), -1, dtype=torch.long, device=device)
        self.column_BN = torch.zeros_like(self.pos_BN)  # where in the text each column's token was read
        self.next_B1 = torch.full((batch, 1), start, dtype=torch.long, device=device)  # the columns written next
        self.evicted_B = torch.full((batch,), -1, dtype=torch.long, device=device)  # the highest position overwritten
        self.size, self.most, self.filled = size, most, start
        # of the last token: its columns here, its column of the text, and how far it has moved each row
        self.at_B1 = torch.zeros_like(self.next_B1)
        self.last_B1 = torch.full_like(self.next_B1, read - 1)
        self.moved_B1 = torch.zeros_like(self.next_B1)
        self.whole = False  # read all columns, empty ones too: their number then never changes
        self.recorded = False  # a CUDA graph of a step reads it: all columns
        self.written = False  # has any layer the keys of the token that has begun?
        self._waiting_moves = waiting_moves
        self._begun = self._grew = False
        self._first: Any = None

    @property
    def must_grow(self) -> bool:
        """Must another one take its place: is it full, with fewer columns than are enough, or sealed?"""
        return self.sealed or (self.filled == self.size and (self.most is None or self.size < self.most))

    @property
    def sealed(self) -> bool:
        """Was it made in inference mode, and can it not be written to outside?"""
        return is_sealed(self.pos_BN)

    @property
    def readable(self) -> int:
        """How many columns a query has to look at."""
        return self.size if self.whole or self.recorded else self.filled

    def buffer(self, kept_BGSD: Tensor) -> Tensor:
        """A tensor of as many columns as the ring has, the first of which are `kept_BGSD`."""
        B, G, S, D = kept_BGSD.shape
        buffer_BGND = kept_BGSD.new_zeros(B, G, self.size, D)
        buffer_BGND[:, :, :S] = kept_BGSD
        return buffer_BGND

    def begin(self, pos_B1: Tensor) -> None:
        """Put a token's positions into the columns that its keys will go to, and move on. Once for all layers."""
        if self._begun:
            return
        self._begun, self.written, self._grew = True, False, self.filled < self.size
        self.count()
        if kernels.begins(self.pos_BN):
            from ..ops.kernels.triton_ring import begin

            held = self.pos_BN, self.column_BN, self.next_B1, self.at_B1, self.evicted_B, self.last_B1, self.moved_B1
            begin(pos_B1, *held, self._waiting_moves)
            return
        pos_B1 = pos_B1.expand_as(self.next_B1)
        real = pos_B1 >= 0
        self.at_B1.copy_(self.next_B1)
        self.last_B1.add_(1)
        self.moved_B1.copy_(torch.ones_like(real) if self._waiting_moves else real)
        self.evicted_B.copy_(torch.maximum(self.evicted_B, self.pos_BN.gather(1, self.at_B1)[:, 0]))
        self.pos_BN.scatter_(1, self.at_B1, pos_B1)
        self.column_BN.scatter_(1, self.at_B1, self.last_B1)
        self.next_B1.add_(self.moved_B1).remainder_(self.size)

    def write(self, k_BGND: Tensor, v_BGND: Tensor, new_k_BG1D: Tensor, new_v_BG1D: Tensor) -> None:
        """Put the token's keys and values into their columns of these buffers."""
        self.written = True
        if kernels.writes(new_k_BG1D, new_v_BG1D, k_BGND, v_BGND):
            from ..ops.kernels.triton_ring import write

            write(new_k_BG1D, new_v_BG1D, k_BGND, v_BGND, self.at_B1)
            return
        for buffer, new in ((k_BGND, new_k_BG1D), (v_BGND, new_v_BG1D)):
            new = new.to(buffer.dtype)
            if len(new) == 1:
                buffer.index_copy_(2, self.at_B1[0], new)
            else:
                buffer.scatter_(2, self.at_B1[:, :, None, None].expand_as(new), new)

    def end(self) -> None:
        """The token has been through all layers, or broke off on its way: before the first, it may come again."""
        if self._begun and not self.written and not (self.pos_BN.is_cuda and torch.cuda.is_current_stream_capturing()):
            self.take_back()
            self.filled -= self._grew
        self._begun = False

    def count(self) -> None:
        """Note on the host that one more column is filled, if there is one: by a graph, where that has written it."""
        self.filled = min(self.filled + 1, self.size)

    @property
    def counted(self) -> int:
        """What the host has counted, for a recording that must leave it as it was."""
        return self.filled

    @counted.setter
    def counted(self, filled: int) -> None:
        self.filled = filled

    def take_back(self) -> None:
        """Let the last token come again: it goes to the same columns."""
        self.next_B1.copy_(self.at_B1)
        self.pos_BN.scatter_(1, self.next_B1, -1)
        self.last_B1.sub_(1)

    def reorder(self, layer: Any, own: Iterable[Tensor], beam_idx: Tensor) -> None:
        """Choose rows of a layer's `own` tensors in place, and with the first layer those of the shared positions."""
        self._first = self._first or layer
        shared = (self.pos_BN, self.column_BN, self.next_B1, self.evicted_B) if layer is self._first else ()
        for tensor in (*own, *shared):
            tensor.copy_(tensor.index_select(0, beam_idx.to(tensor.device)))

    def in_order(self) -> Tensor:
        """(B, filled): each row's columns from the oldest to the newest."""
        columns = torch.arange(self.filled, device=self.next_B1.device)
        if self.filled < self.size:
            return columns.expand(len(self.next_B1), -1)
        return (columns + self.next_B1) % self.size
