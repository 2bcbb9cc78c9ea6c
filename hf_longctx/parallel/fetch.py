"""Attention with keys that are fetched in one exchange, before the call that needs them: all-gather and halo.

Whole documents are computed while the exchange is in flight. Then one call of a kernel takes all pieces of shared
documents, each against the stretch of keys that it sees; the gradients of these keys go back to where they came from.
"""

# H query heads, G key/value heads, L rows of a rank, N keys of the table, E = 2 D: a key and its value, D head dim
from __future__ import annotations

from functools import cached_property

import torch
from torch import Tensor

from ..ops.masks import Full, Window
from . import sums
from .blocks import RankBlock, RankResults, RankTensors, rounded_halves, table_of, taken
from .exchange import Exchange
from .group_rows import Order
from .layout import ranges
from .peers import Pending
from .softmax import Attending, Differentiating


class FetchExchange(Exchange):
    """See the module. A kind says what is fetched, and where each token of the pack is in the table that results."""

    def fetch(self, shared_NGE: Tensor, ahead: bool) -> Pending:
        """The table of keys, from the rank's own rows of shared documents; `ahead`: something is computed meanwhile."""
        raise NotImplementedError

    def give_back(self, gradient_NGE: Tensor) -> Tensor:
        """The gradient of the rank's own rows of shared documents, summed over ranks, from that of the table."""
        raise NotImplementedError

    @property
    def table_rows(self) -> int:
        """Rows of the table."""
        raise NotImplementedError

    def slots(self) -> Tensor:
        """Where each token of the pack is in the table, (T,), at least for those that the rank's rows see."""
        raise NotImplementedError

    def forward(self, given: RankTensors, kept: list[Tensor] | None = None) -> tuple[Tensor, Tensor]:
        """See `Exchange`."""
        whole, cut = self.blocks
        coming, softmax = self._coming(given), Attending(given, apart=True)
        if whole is not None:
            softmax.add(whole, whole.own(given.k_BGLD, given.v_BGLD))
        if coming is not None:
            keys = self._keys(coming())
            if kept is not None:
                kept.append(keys)
            if cut is not None:
                softmax.add_table(cut, keys)
        return softmax.result()

    def backward(self, given: RankTensors, found: RankResults) -> tuple[Tensor, Tensor, Tensor]:
        """See `Exchange`."""
        whole = self.blocks[0]
        grads = Differentiating(given, found, apart=True)
        if not self.layout.shared:
            return grads.alone(whole, given)
        total = self._gradient_of_keys(given, found, grads)
        return grads.dq_BHLD, *rounded_halves(total, given.k_BGLD.dtype)

    def _gradient_of_keys(self, given: RankTensors, found: RankResults, grads: Differentiating) -> Tensor:
        """The gradient of the rank's keys and values by row, (L, G, E), unrounded; its buffers end with it."""
        whole, cut = self.blocks
        coming = None if found.kept else self._coming(given)
        total = None
        if whole is not None:
            keys = whole.own(given.k_BGLD, given.v_BGLD)
            total = grads.gradient_of(whole, keys, given.k_BGLD.shape[2])
        table = found.kept[0] if coming is None else self._keys(coming())
        gradient = grads.gradient_of(cut, table, self.table_rows)
        returned = taken(self.give_back(gradient), slice(0, self.layout.shared_sizes[self.rank]), 0)
        if total is None:  # all rows are of shared documents
            total = returned
        else:
            total[self.shared_rows] = returned
        return total

    def _keys(self, table_NGE: Tensor) -> Tensor:
        """Those of the table that the rank's rows see, run by run."""
        seen = self._seen
        return table_NGE[:0] if seen is None else seen.of(table_NGE)

    @cached_property
    def _seen(self) -> Order | None:
        """Where these are in the table; None: the rank's rows see none."""
        cut = self.blocks[1]
        return None if cut is None else Order(cut.numbers_S, self.device, self.table_rows)

    def _coming(self, given: RankTensors) -> Pending | None:
        if not self.layout.shared:
            return None
        own = taken(table_of(given.k_BGLD, given.v_BGLD), self.shared_rows, 0)
        return self.fetch(own, ahead=self.blocks[0] is not None)

    def prepare(self) -> None:
        """See `Exchange`."""
        super().prepare()
        if self._seen is not None:
            self._seen.prepare()
        if self.layout.shared:
            for block, rows in zip(self.blocks, (self.layout.sizes[self.rank], self.table_rows), strict=True):
                sums.prepare(block, rows)

    @cached_property
    def blocks(self) -> list[RankBlock | None]:
        """The rank's whole documents, then all pieces of shared ones, with their runs of the table."""
        layout, rank = self.layout, self.rank
        codes, rows = layout.codes(rank), layout.shared_rows[rank]
        alone = torch.ones(layout.sizes[rank], dtype=torch.bool)
        alone[rows] = False
        whole_L = alone.nonzero()[:, 0]
        whole_runs = [(stop, stop) for document, _, stop in layout.pieces[rank] if document not in layout.shared]
        both = codes[whole_L], codes[whole_L]
        whole = RankBlock.of(whole_L, whole_L, both, whole_runs, self.inside, self.device, True, True)
        runs, keys = self._runs()
        keys_S = ranges(keys)
        codes_of = codes[rows], layout.codes_T[keys_S]
        in_order = not isinstance(self.inside, Full)
        cut = RankBlock.of(rows, self.slots()[keys_S], codes_of, runs, self.inside, self.device, False, in_order)
        return [whole, cut]

    def _runs(self) -> tuple[list[tuple[int, int]], list[tuple[int, int]]]:
        """Queries and keys of each run of rows of shared documents, and where these keys are in the pack."""
        runs: list[tuple[int, int]] = []
        keys: list[tuple[int, int]] = []
        before = None
        for document, start, stop in self.layout.pieces[self.rank]:
            if document not in self.layout.shared:
                continue
            first, last = 0, stop
            if isinstance(self.inside, Window):
                first = max(0, start - self.inside.size + 1)
            if isinstance(self.inside, Full):
                last = self.layout.lengths[document]
                if document == before:  # all pieces see the same keys
                    runs[-1] = (runs[-1][0] + stop - start, last)
                    continue
            place = self.layout.starts[document]
            keys.append((place + first, place + last))
            runs.append((stop - start, last - first))
            before = document
        return runs, keys


def places_of_shared(fetch: FetchExchange) -> list[Tensor]:
    """Where each rank's rows of shared documents are in the pack."""
    layout = fetch.layout
    return [places[rows] for places, rows in zip(layout.places, layout.shared_rows, strict=True)]
