"""All processes' rows of a tensor, with a gradient that returns to each row's own process."""

from __future__ import annotations

from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor


def gather_rows(rows: Tensor) -> Tensor:
    """[B, ...] on each of P processes to [P * B, ...] on all, in the order of their ranks.

    Backward adds the gradients of every process' loss for a row: averaged by DDP or accelerate afterwards, they are
    those of the mean of the processes' losses. Without torch.distributed, or on one process, `rows` itself.

    Raises:
        ValueError: The processes hold different numbers of rows.
    """
    if not _distributed() or dist.get_world_size() == 1:
        return rows
    counts = [torch.zeros(1, dtype=torch.long, device=rows.device) for _ in range(dist.get_world_size())]
    dist.all_gather(counts, torch.full_like(counts[0], rows.shape[0]))
    found = torch.cat(counts).tolist()
    if len(set(found)) > 1:
        raise ValueError(
            f"the processes hold {found} rows; expected the same number on each. Drop the last batch where it is short."
        )
    gathered: Tensor = _Gather.apply(rows)
    return gathered


def own_rows(count: int, device: torch.device) -> Tensor:
    """The places of this process' `count` rows among the gathered ones."""
    return torch.arange(count, device=device) + (dist.get_rank() * count if _distributed() else 0)


def _distributed() -> bool:
    return dist.is_available() and dist.is_initialized()


class _Gather(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, rows: Tensor) -> Tensor:
        ctx.count = rows.shape[0]
        parts = [torch.empty_like(rows, memory_format=torch.contiguous_format) for _ in range(dist.get_world_size())]
        dist.all_gather(parts, rows.contiguous())
        return torch.cat(parts)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> Tensor:
        # not reduce_scatter, which gloo lacks
        total = grads[0].clone(memory_format=torch.contiguous_format)
        dist.all_reduce(total)
        start = dist.get_rank() * ctx.count
        return total[start : start + ctx.count]
