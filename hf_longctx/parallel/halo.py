"""Halo: with a window of n tokens a piece needs only the n - 1 keys before it, from whichever rank holds them."""

# T tokens of the pack, G key/value heads, N rows of shared documents, E = 2 D: a key and its value
from __future__ import annotations

from functools import cached_property

import torch
from torch import Tensor

from ..ops.masks import Window
from .fetch import FetchExchange, places_of_shared
from .peers import Pending


class HaloExchange(FetchExchange):
    """See the module. `inside` is a `Window`; the table is what is received, then the rank's own rows."""

    @cached_property
    def halos(self) -> list[Tensor]:
        """The places in the pack of what each rank needs, by the rank that holds it, then by place."""
        assert isinstance(self.inside, Window)
        needs = [self.layout.halo(rank, self.inside.size) for rank in range(self.layout.ranks)]
        return [need[self.layout.owners_T[need].argsort(stable=True)] for need in needs]

    @cached_property
    def sent(self) -> tuple[Tensor, list[int], list[int]]:
        """Which of this rank's rows of shared documents are sent, how many to each rank, how many come from each."""
        owners, ranks = self.layout.owners_T, self.layout.ranks
        row_T = torch.full((self.layout.starts[-1],), -1)
        own = places_of_shared(self)[self.rank]
        row_T[own] = torch.arange(len(own))
        parts = [row_T[need[owners[need] == self.rank]] for need in self.halos]
        received = owners[self.halos[self.rank]].bincount(minlength=ranks).tolist()
        rows = torch.cat(parts).to(self.device, non_blocking=True)
        return rows, [len(part) for part in parts], received

    def fetch(self, shared_NGE: Tensor, ahead: bool) -> Pending:
        """See `FetchExchange`."""
        rows, send, receive = self.sent
        coming = self.peers.exchange(shared_NGE[rows], send, receive, ahead)
        return lambda: torch.cat([coming(), shared_NGE])

    def give_back(self, gradient_NGE: Tensor) -> Tensor:
        """See `FetchExchange`."""
        rows, send, receive = self.sent
        others = sum(receive)
        returned = self.peers.exchange(gradient_NGE[:others].contiguous(), receive, send, ahead=False)()
        own = gradient_NGE[others:]
        for part, where in zip(returned.split(send), rows.split(send), strict=True):
            own.index_add_(0, where, part)  # rank by rank: always the same order of the sum
        return own

    def prepare(self) -> None:
        """See `Exchange`."""
        super().prepare()
        _ = self.sent

    @property
    def table_rows(self) -> int:
        """See `FetchExchange`."""
        return len(self.halos[self.rank]) + self.layout.shared_sizes[self.rank]

    def slots(self) -> Tensor:
        """See `FetchExchange`."""
        slots_T = torch.full((self.layout.starts[-1],), -1)
        got, own = self.halos[self.rank], places_of_shared(self)[self.rank]
        slots_T[got] = torch.arange(len(got))
        slots_T[own] = torch.arange(len(own)) + len(got)
        return slots_T
