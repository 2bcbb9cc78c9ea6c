"""A ring's token, in Triton: its bookkeeping in one launch, and its keys and values put into their columns in one."""

# mypy: disable-error-code="no-untyped-def"
# B batch, G key/value heads, N columns, D head dim, V that of values
from __future__ import annotations

import triton
import triton.language as tl
from torch import Tensor

from .placed import on_device_of


@triton.jit
def _begin(pos, pos_at, column_at, next_at, at, evicted, last, moved, size, pos_b, WAITING_MOVES: tl.constexpr):
    row = tl.program_id(0).to(tl.int64)
    new, column, read = tl.load(pos + row * pos_b), tl.load(next_at + row), tl.load(last + row) + 1
    to = row * size + column
    tl.store(evicted + row, tl.maximum(tl.load(evicted + row), tl.load(pos_at + to)))
    tl.store(pos_at + to, new)
    tl.store(column_at + to, read)
    tl.store(last + row, read)
    tl.store(at + row, column)
    by = (new >= 0).to(tl.int64) | WAITING_MOVES
    tl.store(moved + row, by)
    tl.store(next_at + row, (column + by) % size)


def begin(
    pos_B1: Tensor, pos_BN: Tensor, column_BN: Tensor, next_B1: Tensor, at_B1: Tensor, evicted_B: Tensor,
    last_B1: Tensor, moved_B1: Tensor, waiting_moves: bool,
) -> None:  # fmt: skip
    """What `Ring.begin` says of a token, whose tensors these are, contiguous ones of int64, but for the positions."""
    B, N = pos_BN.shape
    pos = pos_B1.expand(B, 1)
    with on_device_of(pos_BN):
        _begin[(B,)](
            pos, pos_BN, column_BN, next_B1, at_B1, evicted_B, last_B1, moved_B1, N, pos.stride(0),
            WAITING_MOVES=int(waiting_moves), num_warps=1,
        )  # fmt: skip


@triton.jit
def put(x, to, from_b, from_g, to_b, to_g, to_n, row, head, column, D: tl.constexpr, DP: tl.constexpr):
    """A token's key of one head, or its value, into its column."""
    dim = tl.arange(0, DP)
    one = tl.load(x + row * from_b + head * from_g + dim, dim < D)
    tl.store(to + row * to_b + head * to_g + column * to_n + dim, one, dim < D)


@triton.jit
def _write(k, v, to_k, to_v, at, k_b, k_g, v_b, v_g, tk_b, tk_g, tk_n, tv_b, tv_g, tv_n,
           D: tl.constexpr, DP: tl.constexpr, V: tl.constexpr, VP: tl.constexpr):  # fmt: skip
    row, head = tl.program_id(0).to(tl.int64), tl.program_id(1).to(tl.int64)
    column = tl.load(at + row)
    put(k, to_k, k_b, k_g, tk_b, tk_g, tk_n, row, head, column, D, DP)
    put(v, to_v, v_b, v_g, tv_b, tv_g, tv_n, row, head, column, V, VP)


def write(k_BG1D: Tensor, v_BG1D: Tensor, to_k_BGND: Tensor, to_v_BGND: Tensor, at_B1: Tensor) -> None:
    """Put a token's keys and values into the columns `at_B1`; buffers have contiguous rows, and any dtype."""
    B, G, _, D = k_BG1D.shape
    V, up = v_BG1D.shape[-1], triton.next_power_of_2
    k, v = (x if x.stride(-1) == 1 else x.contiguous() for x in (k_BG1D, v_BG1D))
    strides = (*k.stride()[:2], *v.stride()[:2], *to_k_BGND.stride()[:3], *to_v_BGND.stride()[:3])
    with on_device_of(to_k_BGND):
        _write[(B, G)](k, v, to_k_BGND, to_v_BGND, at_B1, *strides, D=D, DP=up(D), V=V, VP=up(V), num_warps=1)
