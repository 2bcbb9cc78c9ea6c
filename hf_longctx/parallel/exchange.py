"""`Exchange`: what every kind of exchange computes, and what all of them are given."""

# H query heads, L rows of a rank, D head dim
from __future__ import annotations

import itertools
from functools import cached_property
from weakref import WeakValueDictionary

import torch
from torch import Tensor

from ..ops.masks import Mask
from .blocks import RankBlock, RankResults, RankTensors, Rows, compact
from .layout import Layout
from .peers import Peers

# an operator of torch takes numbers, not objects
_numbers = itertools.count()
_live: WeakValueDictionary[int, Exchange] = WeakValueDictionary()


class Exchange:
    """Attention of a rank's rows within their documents, with the keys of all ranks, and its gradients.

    Every rank of the layout calls the same methods in the same order, also without any rows.

    Args:
        layout: Which rank holds what.
        peers: The ranks of the layout.
        inside: Which pairs exist within a document.
        device: Where the tensors will be.

    Attributes:
        number: Its handle for `attention`'s operator.
    """

    def __init__(self, layout: Layout, peers: Peers, inside: Mask, device: torch.device) -> None:
        self.layout, self.peers, self.inside, self.device = layout, peers, inside, device
        self.rank = peers.rank
        self.number = next(_numbers)
        _live[self.number] = self

    @staticmethod
    def of(number: int) -> Exchange:
        """The one with this number, which lives as long as its `Ranks`."""
        if number not in _live:
            raise RuntimeError("the Ranks of this attention are gone. Keep them until the backward pass has ended.")
        return _live[number]

    def forward(self, given: RankTensors, kept: list[Tensor] | None = None) -> tuple[Tensor, Tensor]:
        """The output (1, L, H, D), in the dtype of the queries, and the log-sum-exp (1, H, L) of the rank's rows.

        What spares the backward pass an exchange goes to `kept`, where there is such a list: the keys that a kind
        fetches in one piece, or the log-sum-exp of a rank's heads.
        """
        raise NotImplementedError

    def backward(self, given: RankTensors, found: RankResults) -> tuple[Tensor, Tensor, Tensor]:
        """dq, dk and dv of the rank's rows, summed over all ranks in at least fp32, from the forward's results."""
        raise NotImplementedError

    @cached_property
    def shared_rows(self) -> Rows:
        """The rank's rows of documents that other ranks have rows of."""
        return compact(self.layout.shared_rows[self.rank], self.device)

    @cached_property
    def blocks(self) -> list[RankBlock | None]:
        """The blocks of this rank, made once: the layers of a forward share them. Copies to the device."""
        raise NotImplementedError

    def prepare(self) -> None:
        """Make what all layers share, and copy it to the device; else the first layer does."""
        _ = self.blocks, self.shared_rows
