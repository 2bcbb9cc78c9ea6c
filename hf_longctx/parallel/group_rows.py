"""`GroupRows`: the rows of a group's members, one member after the other or in the order of the pack."""

# N rows of the group
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

    Attributes:
        sizes: Rows of each member.
    """

    def __init__(self, places: Sequence[Tensor], device: torch.device) -> None:
        self.sizes = [len(place_L) for place_L in places]
        order_N = torch.cat(list(places)).argsort()
        self._ways = _Order(order_N, device), _Order(order_N.argsort(), device)

    def to_pack(self, x_N: Tensor) -> Tensor:
        """(N, ...) of one member after the other, in the order of the pack."""
        return self._ways[0].of(x_N)

    def to_members(self, x_N: Tensor) -> Tensor:
        """The way back."""
        return self._ways[1].of(x_N)

    def prepare(self) -> None:
        """Copy to the device what all layers share; else the first layer does."""
        for way in self._ways:
            _ = way.index_N if way.stretches is None else None


class _Order:
    """An order of rows, by stretches of successive ones, or by an index where there are many."""

    def __init__(self, rows_N: Tensor, device: torch.device) -> None:
        self.rows_N, self.device = rows_N, device

    def of(self, x_N: Tensor) -> Tensor:
        """The rows in this order."""
        if self.stretches is None:
            return x_N.index_select(0, self.index_N)
        lengths, order = self.stretches
        if len(order) < 2:
            return x_N
        parts = x_N.split(lengths)  # one view of each stretch in one call of torch
        return torch.cat([parts[n] for n in order])

    @cached_property
    def index_N(self) -> Tensor:
        """The rows by number."""
        return self.rows_N.to(self.device, non_blocking=True)

    @cached_property
    def stretches(self) -> tuple[list[int], list[int]] | None:
        """Rows of each stretch as they are, and which stretch comes when; None where there are many."""
        starts = [0, *((self.rows_N.diff() != 1).nonzero()[:, 0] + 1).tolist()] if len(self.rows_N) else []
        if len(starts) > MANY:
            return None
        found = [(int(self.rows_N[a]), b - a) for a, b in pairwise([*starts, len(self.rows_N)])]
        as_they_are = sorted(range(len(found)), key=lambda n: found[n])
        place = {n: at for at, n in enumerate(as_they_are)}
        return [found[n][1] for n in as_they_are], [place[n] for n in range(len(found))]
