"""`GroupRows`: the rows of a group's members, one member after the other or in the order of the pack.

`Order`: some of the rows of a table, in any order.
"""

# N rows of the group, or those that are taken
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
        self._ways = Order(order_N, device, len(order_N)), Order(order_N.argsort(), device, len(order_N))

    def to_pack(self, x_N: Tensor) -> Tensor:
        """(N, ...) of one member after the other, in the order of the pack."""
        return self._ways[0].of(x_N)

    def to_members(self, x_N: Tensor) -> Tensor:
        """The way back."""
        return self._ways[1].of(x_N)

    def prepare(self) -> None:
        """Copy to the device what all layers share; else the first layer does."""
        for way in self._ways:
            way.prepare()


class Order:
    """Rows of a table, some of them perhaps several times, by stretches of successive ones, or by an index of many.

    Args:
        rows_N: By number.
        device: Where the tensors will be.
        size: Rows of the table.
    """

    def __init__(self, rows_N: Tensor, device: torch.device, size: int) -> None:
        self.rows_N, self.device, self.size = rows_N, device, size

    def of(self, x: Tensor) -> Tensor:
        """The rows in this order."""
        if self.stretches is None:
            return x.index_select(0, self.index_N)
        lengths, order = self.stretches
        if order == list(range(len(lengths))):
            return x
        parts = x.split_with_sizes(lengths)  # one view of each stretch in one call of torch
        return parts[order[0]] if len(order) == 1 else torch.cat([parts[n] for n in order])

    def prepare(self) -> None:
        """Copy to the device what all layers share; else the first layer does."""
        _ = self.index_N if self.stretches is None else None

    @cached_property
    def index_N(self) -> Tensor:
        """The rows by number."""
        return self.rows_N.to(self.device, non_blocking=True)

    @cached_property
    def stretches(self) -> tuple[list[int], list[int]] | None:
        """Rows of each stretch of the table, and which stretch comes when; None where there are many."""
        starts = [0, *((self.rows_N.diff() != 1).nonzero()[:, 0] + 1).tolist()] if len(self.rows_N) else []
        if len(starts) > MANY:
            return None
        found = [(int(self.rows_N[a]), int(self.rows_N[b - 1]) + 1) for a, b in pairwise([*starts, len(self.rows_N)])]
        edges = sorted({0, self.size, *(edge for stretch in found for edge in stretch)})
        place = {edge: at for at, edge in enumerate(edges)}
        order = [at for start, stop in found for at in range(place[start], place[stop])]
        return None if len(order) > MANY else ([b - a for a, b in pairwise(edges)], order)
