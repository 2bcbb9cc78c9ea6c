"""`Peers`: the processes that exchange rows, and torch's collectives among them, in flight until waited for."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor

Pending = Callable[[], Tensor]  # waits for a tensor that is on its way


class Peers:
    """The processes of a group, or, without a group, this process alone. Every one of them joins every exchange.

    What need not go `ahead`, while something else is computed, torch 2.8 and later do in the stream of the computation:
    without events of a second stream, which cost the host some time.
    """

    def __init__(self, group: Any = None, alone: bool = False) -> None:
        self.group = group
        self.size = 1 if alone else dist.get_world_size(group)
        self.rank = 0 if alone else dist.get_rank(group)

    def shift(self, x: Tensor, tag: int = 0) -> Pending:
        """Send to the next rank, receive from the one before. What is in flight at a time has different tags."""
        out = torch.empty_like(x)
        to, source = (self._global((self.rank + step) % self.size) for step in (1, -1))
        send = dist.P2POp(dist.isend, x, to, self.group, tag)
        works = dist.batch_isend_irecv([send, dist.P2POp(dist.irecv, out, source, self.group, tag)])
        return _pending(out, works, x)

    def gather(self, x: Tensor, ahead: bool = True) -> Pending:
        """(N, ...) of every rank as (P N, ...), in the order of ranks."""
        out = x.new_empty(self.size * x.shape[0], *x.shape[1:])
        all_gather = getattr(dist, "all_gather_single", None) or dist.all_gather_into_tensor  # renamed in torch 2.13
        return _pending(out, [all_gather(out, x, group=self.group, async_op=ahead)], x)

    def scatter_sum(self, x: Tensor) -> Tensor:
        """(P N, ...) on every rank: the sum over ranks of this rank's (N, ...). May overwrite `x`."""
        if x.device.type != "cpu":
            return self.reduce_scatter(x)
        own = x.shape[0] // self.size  # gloo scatters sums in new versions of torch only
        dist.all_reduce(x, group=self.group)
        return x[self.rank * own :][:own]

    def reduce_scatter(self, x: Tensor) -> Tensor:
        """`scatter_sum` where the backend has it."""
        out = x.new_empty(x.shape[0] // self.size, *x.shape[1:])
        reduce_scatter = getattr(dist, "reduce_scatter_single", None) or dist.reduce_scatter_tensor
        reduce_scatter(out, x, group=self.group)
        return out

    def exchange(self, x: Tensor, send: Sequence[int], receive: Sequence[int], ahead: bool = True) -> Pending:
        """So many of the rows of `x` to each rank, one after the other, and so many from each."""
        out = x.new_empty(sum(receive), *x.shape[1:])
        sizes = list(receive), list(send)
        return _pending(out, [dist.all_to_all_single(out, x, *sizes, group=self.group, async_op=ahead)], x)

    def _global(self, rank: int) -> int:
        return rank if self.group is None else dist.get_global_rank(self.group, rank)


def _pending(out: Tensor, works: Sequence[Any], sent: Tensor) -> Pending:
    kept: list[Any] = [sent]  # must live until then

    def wait() -> Tensor:
        for work in works:
            if work is not None:  # it was not done at once
                work.wait()
        kept.clear()
        return out

    return wait
