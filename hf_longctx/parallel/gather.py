"""All-gather: every rank gets the keys and values of all shared documents in one exchange.

One exchange of all keys and one sum of all their gradients, in fp32: faster than a ring where it fits in memory.
"""

# T tokens of the pack, G key/value heads, N rows of shared documents, E = 2 D: a key and its value
from __future__ import annotations

from functools import cached_property

import torch
from torch import Tensor

from .blocks import padded
from .fetch import FetchExchange, places_of_shared
from .peers import Pending


class GatherExchange(FetchExchange):
    """See the module."""

    @cached_property
    def longest(self) -> int:
        """The most rows of shared documents that a rank holds: what each of them sends."""
        return max(self.layout.shared_sizes)

    def fetch(self, shared_NGE: Tensor, ahead: bool) -> Pending:
        """See `FetchExchange`."""
        return self.peers.gather(padded(shared_NGE, self.longest), ahead)

    def give_back(self, gradient_NGE: Tensor) -> Tensor:
        """See `FetchExchange`."""
        return self.peers.scatter_sum(gradient_NGE)

    @property
    def table_rows(self) -> int:
        """See `FetchExchange`."""
        return self.layout.ranks * self.longest

    def slots(self) -> Tensor:
        """See `FetchExchange`."""
        slots_T = torch.full((self.layout.starts[-1],), -1)
        for rank, places in enumerate(places_of_shared(self)):
            slots_T[places] = torch.arange(len(places)) + rank * self.longest
        return slots_T
