"""From a rank's share back to the whole batch: the loss of the group, and what is said token by token.

The value is the same on every rank. The gradient is the rank's own part times the number of ranks: a mean over all
processes, which DDP, FSDP and ZeRO take, is then the gradient that one process would have.
"""

# B rows, T tokens of a row, N real tokens of the batch, L rows of a rank, E anything a token
from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor

from ..blocks import padded
from ..layout import Layout
from ..peers import Peers
from .documents import Documents
from .groups import Groups


class _Sum(torch.autograd.Function):
    """The sum over a group."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, groups: Groups) -> Tensor:
        ctx.size = groups.size
        total = x.clone()
        dist.all_reduce(total, group=groups.whole)
        return total

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor, None]:
        return grads[0] * ctx.size, None


class _Whole(torch.autograd.Function):
    """(L, E) of every rank as (N, E), in the order of the batch."""

    @staticmethod
    def forward(ctx: Any, x_LE: Tensor, layout: Layout, groups: Groups) -> Tensor:
        ctx.layout, ctx.rank = layout, groups.rank
        longest = max(layout.sizes)
        every = Peers(groups.whole).gather(padded(x_LE, longest).contiguous(), ahead=False)()
        row_N = torch.empty(sum(layout.sizes), dtype=torch.int64)
        for rank, places in enumerate(layout.places):
            row_N[places] = torch.arange(len(places)) + rank * longest
        return every[row_N.to(every.device, non_blocking=True)]

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor, None, None]:
        own = ctx.layout.places[ctx.rank].to(grads[0].device, non_blocking=True)
        return grads[0][own] * ctx.layout.ranks, None, None


@dataclass(frozen=True, eq=False)
class Share:
    """A rank's part of a batch.

    Args:
        shape: Of the batch: rows, and tokens of a row.
        documents: Of the batch.
        layout: Which rank has which of their tokens.
        groups: The processes that share the batch.
        device: Where the tensors are.
    """

    shape: tuple[int, int]
    documents: Documents
    layout: Layout
    groups: Groups
    device: torch.device

    @property
    def rows(self) -> int:
        """This rank's tokens. Without any it computes one that counts nowhere: stock layers take no empty batch."""
        return self.layout.sizes[self.groups.rank]

    @cached_property
    def _mine_L(self) -> Tensor:
        mine_L = self.documents.where_N[self.layout.places[self.groups.rank]]
        return (mine_L if self.rows else torch.zeros(1, dtype=torch.int64)).to(self.device, non_blocking=True)

    def take(self, x_BT: Tensor) -> Tensor:
        """This rank's tokens of (B, T, ...), as one row: (1, L, ...); one token where it has none."""
        return x_BT.to(self.device).flatten(0, 1)[self._mine_L][None]

    def total(self, loss: Tensor) -> Tensor:
        """The loss of the group, from the part of each rank."""
        return loss if self.groups.size == 1 else _Sum.apply(loss, self.groups)

    def whole(self, x_1L: Tensor) -> Tensor:
        """(B, T, ...) in the caller's order, from (1, L, ...) of each rank; zeros where there is padding."""
        x_LE = x_1L[0, : self.rows]
        travels = x_LE.to(torch.uint8) if x_LE.dtype == torch.bool else x_LE
        whole_NE = travels if self.groups.size == 1 else _Whole.apply(travels, self.layout, self.groups)
        B, T = self.shape
        where_N = self.documents.where_N.to(self.device, non_blocking=True)
        if len(where_N) < B * T:
            whole_NE = whole_NE.new_zeros(B * T, *whole_NE.shape[1:]).index_copy(0, where_N, whole_NE)
        return whole_NE.view(B, T, *whole_NE.shape[1:]).to(x_LE.dtype)
