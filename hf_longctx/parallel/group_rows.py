"""`GroupRows`: the rows of a group's members, one member after the other or in the order of the pack."""

# X heads, L rows of a member, N rows of the group, D head dim
from __future__ import annotations

from collections.abc import Sequence
from functools import cached_property
from itertools import pairwise

import torch
from torch import Tensor

MANY = 64  # stretches of rows, from which the host is slower with each of them than the device with one index


class GroupRows:
    """Moves tensors of rows between the members of a group and the order of the pack.

    Args:
        places: Of each member's rows in the pack; they rise.
        device: Where the tensors will be.
    """

    def __init__(self, places: Sequence[Tensor], device: torch.device) -> None:
        self.sizes, self.device = [len(place_L) for place_L in places], device
        self._order_N = torch.cat(list(places)).argsort()

    def of_members(self, members: Sequence[Tensor]) -> Tensor:
        """(X, L, D) of each member as (X, N, D), in the order of the pack."""
        if self._stretches is None:
            return torch.cat(list(members), 1)[:, self._indices[0]]
        order = sorted((place, m, rows) for m, stretches in enumerate(self._stretches) for place, rows in stretches)
        return torch.cat([members[m][:, rows] for _, m, rows in order], 1) if order else members[0]

    def by_member(self, x_XND: Tensor) -> list[list[Tensor]]:
        """The way back: the rows of each member, in stretches."""
        if self._stretches is None:
            return [[part] for part in x_XND[:, self._indices[1]].split(self.sizes, 1)]
        return [
            [x_XND.narrow(1, place, rows.stop - rows.start) for place, rows in stretches]
            for stretches in self._stretches
        ]

    def prepare(self) -> None:
        """Copy to the device what all layers share; else the first layer does."""
        _ = self._indices if self._stretches is None else None

    @cached_property
    def _indices(self) -> tuple[Tensor, Tensor]:
        """Of the members' rows for the order of the pack, and for the way back."""
        both = self._order_N, self._order_N.argsort()
        return both[0].to(self.device, non_blocking=True), both[1].to(self.device, non_blocking=True)

    @cached_property
    def _stretches(self) -> list[list[tuple[int, slice]]] | None:
        """For each member, its successive rows: the first one's place in the order of the pack, and which rows.

        None where there are many.
        """
        found = []
        for place_L in self._order_N.argsort().split(self.sizes):
            starts = [0, *((place_L.diff() != 1).nonzero()[:, 0] + 1).tolist()] if len(place_L) else []
            edges = pairwise([*starts, len(place_L)])
            found.append([(int(place_L[first]), slice(first, after)) for first, after in edges])
        return found if sum(map(len, found)) <= MANY else None
