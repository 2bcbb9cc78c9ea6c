"""Keys and values of a whole cache to other columns, keys re-rotated on the way: on a GPU one launch."""

# T tensors: keys of every layer, then values; G key/value heads, S columns, D head dim
from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from ...ops.layout import rotates_halves
from ...ops.rotation import Rotation


def fits(x: Tensor) -> bool:
    """Can the kernel read this tensor in place? Rows on boundaries of 16 bytes, as caches have them."""
    g, s, d = x.stride()[1:]
    return d == 1 and not x.data_ptr() % 16 and not g % 8 and not s % 8


def fitting(x: Tensor) -> Tensor:
    """The tensor, or a copy that fits: one that begins between two boundaries may be contiguous and does not."""
    return x if fits(x) else x.clone(memory_format=torch.contiguous_format)


def table_of(tensors: Sequence[Tensor], rotates: Sequence[bool]) -> list[int]:
    """The kernel's table of tensors (1, G, S, D) that fit: address, two strides, and whether it is rotated."""
    rotated = [*rotates, *[False] * len(rotates)]
    rows = ((x.data_ptr(), *x.stride()[1:3], r) for x, r in zip(tensors, rotated, strict=True))
    return [int(number) for row in rows for number in row]


def fill(
    buffers: Tensor,
    tensors: Sequence[Tensor],
    rotates: Sequence[bool],
    table: Tensor,
    source_S: Tensor,
    turning: Rotation,
) -> None:
    """Fill column s of the buffers (2, T / 2, 1, G, S, D) with column source[s] of the tensors, where that is not -1.

    On a GPU the tensors are found through `table`, which may be refilled between two runs of a recorded graph.
    """
    dim, rotary_dim = buffers.shape[-1], turning.cos.shape[-1]
    fused = rotates_halves(turning.layout, dim, rotary_dim)
    if buffers.is_cuda:
        from ...ops.kernels.triton_move import move

        both = (turning.cos[0], turning.sin[0]) if fused else None
        move(table, source_S, buffers.flatten(0, 2), both, rotary_dim if fused else dim)
        if fused:
            return
    else:
        filled = source_S >= 0
        for buffer, x in zip(buffers.flatten(0, 2), tensors, strict=True):
            buffer[:, filled] = x[0][:, source_S[filled]]
    for buffer, rotated in zip(buffers[0], rotates, strict=True):
        if rotated:
            buffer.copy_(turning(buffer))  # in fp32 inside, whatever the keys are
