"""Ring attention: keys and values travel from rank to rank, the next ones in flight while a block is computed.

Liu, Zaharia and Abbeel, 2023 (arXiv 2310.01889), on Li et al.'s ring (2021, arXiv 2105.13120), with zigzag pieces. Only
rows of documents that several ranks share travel. In the backward pass the gradients of keys travel one hop behind
them, in fp32, and end at home.
"""

# H query heads, G key/value heads, L rows of a rank, N travelling rows, E = 2 D: a key and its value, D head dim
from __future__ import annotations

from functools import cached_property

import torch
from torch import Tensor

from ..ops.masks import Full
from . import sums
from .blocks import RankBlock, RankResults, RankTensors, add_rows, padded, rounded_halves, table_of, taken
from .exchange import Exchange
from .layout import Piece, ranges
from .softmax import Attending, Differentiating

KEYS, GRADIENTS = 0, 1  # tags of what is in flight at a time


class RingExchange(Exchange):
    """See the module. `inside` is `Causal` or `Full`: windows need no ring, only a halo."""

    def forward(self, given: RankTensors, kept: list[Tensor] | None = None) -> tuple[Tensor, Tensor]:
        """See `Exchange`."""
        own, *others = self.blocks
        coming = self.peers.shift(self._travelling(given), KEYS) if others else None
        softmax = Attending(given, apart=not others)
        if own is not None:
            softmax.add(own, own.own(given.k_BGLD, given.v_BGLD))
        for step, block in enumerate(others, start=1):
            assert coming is not None
            table = coming()
            if step < len(others):
                coming = self.peers.shift(table, KEYS)
            if block is not None:
                softmax.add_table(block, taken(table, block.columns, 0))
        return softmax.result()

    def backward(self, given: RankTensors, found: RankResults) -> tuple[Tensor, Tensor, Tensor]:
        """See `Exchange`."""
        own, *others = self.blocks
        grads = Differentiating(given, found, apart=not others)
        if not others:
            return grads.alone(own, given)
        total = self._gradient_of_keys(given, grads)
        return grads.dq_BHLD, *rounded_halves(total, given.k_BGLD.dtype)

    def _gradient_of_keys(self, given: RankTensors, grads: Differentiating) -> Tensor:
        """The gradient of the rank's keys and values by row, (L, G, E), unrounded; its buffers end with it."""
        own, *others = self.blocks
        coming = self.peers.shift(self._travelling(given), KEYS)
        keys = (given.k_BGLD, given.v_BGLD) if own is None else own.own(given.k_BGLD, given.v_BGLD)
        total = grads.gradient_of(own, keys, given.k_BGLD.shape[2])
        returning = None
        for step, block in enumerate(others, start=1):
            table = coming()
            if step < len(others):
                coming = self.peers.shift(table, KEYS)
            seen = table if block is None else taken(table, block.columns, 0)
            gradient = grads.gradient_of(block, seen, table.shape[0])
            if returning is not None:
                gradient += returning()
            returning = self.peers.shift(gradient, GRADIENTS)
            del gradient  # what is in flight is held until it has come
        if returning is not None:  # of the last step
            returned = taken(returning(), slice(0, self.layout.shared_sizes[self.rank]), 0)
            add_rows(total, self.shared_rows, returned, 0)
        return total

    def _travelling(self, given: RankTensors) -> Tensor:
        """The rows that other ranks need, and so many more that all ranks send as many."""
        table_LGE = table_of(given.k_BGLD, given.v_BGLD)
        return padded(taken(table_LGE, self.shared_rows, 0), self._longest)

    @cached_property
    def _longest(self) -> int:
        """The most rows that a rank has to send: what each of them sends."""
        return max(self.layout.shared_sizes)

    def prepare(self) -> None:
        """See `Exchange`."""
        super().prepare()
        own, *others = self.blocks
        if others:
            sums.prepare(own, self.layout.sizes[self.rank])
            for block in others:
                sums.prepare(block, self._longest)

    @cached_property
    def blocks(self) -> list[RankBlock | None]:
        """The rank's own keys first, then those that arrive: of the rank before, of the one before that, and so on."""
        layout, rank = self.layout, self.rank
        codes, size = layout.codes(rank), layout.sizes[rank]
        held: dict[int, int] = {}
        for document, start, stop in layout.pieces[rank]:
            held[document] = held.get(document, 0) + stop - start
        every = torch.arange(size)
        runs, in_order = [(n, n) for n in held.values()], not layout.shared
        own = RankBlock.of(every, every, (codes, codes), runs, self.inside, self.device, True, in_order)
        if not layout.shared:
            return [own]
        return [own, *(self._arriving((rank - step) % layout.ranks) for step in range(1, layout.ranks))]

    def _arriving(self, other: int) -> RankBlock | None:
        """Keys of another rank: pieces of both do not overlap, so a piece sees another wholly or not at all."""
        layout = self.layout
        mine, theirs = self._stretches(self.rank, False), self._stretches(other, True)
        rows: list[tuple[int, int]] = []
        columns: list[tuple[int, int]] = []
        runs: list[tuple[int, int]] = []
        for document in sorted(mine.keys() & theirs.keys()):
            before: list[tuple[int, int]] | None = None
            for piece, row in mine[document]:
                seen = [
                    (at, at + key.stop - key.start)
                    for key, at in theirs[document]
                    if isinstance(self.inside, Full) or key.start < piece.start
                ]
                if not seen:
                    continue
                length = piece.stop - piece.start
                rows.append((row, row + length))
                if seen == before:
                    runs[-1] = (runs[-1][0] + length, runs[-1][1])
                    continue
                columns += seen
                runs.append((length, sum(stop - start for start, stop in seen)))
                before = seen
        rows_L, columns_S = ranges(rows), ranges(columns)
        key_codes = layout.codes(other)[layout.shared_rows[other]]
        codes = layout.codes(self.rank)[rows_L], key_codes[columns_S]
        return RankBlock.of(rows_L, columns_S, codes, runs, Full(), self.device)

    def _stretches(self, rank: int, travelling: bool) -> dict[int, list[tuple[Piece, int]]]:
        """A rank's pieces of each shared document, with the first row of each: of all rows, or of those that travel."""
        found: dict[int, list[tuple[Piece, int]]] = {}
        row = 0
        for piece in self.layout.pieces[rank]:
            shared = piece.document in self.layout.shared
            if shared:
                found.setdefault(piece.document, []).append((piece, row))
            row += (piece.stop - piece.start) * (shared or not travelling)
        return found
