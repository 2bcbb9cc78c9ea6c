"""Columns of many caches' layers to other places, and keys rotated on their way, in Triton: one launch, one pass."""

# mypy: disable-error-code="no-untyped-def"
# T tensors, G key/value heads, S columns, D head dim, R rotary dims
from __future__ import annotations

from typing import Any

import triton
import triton.language as tl
from torch import Tensor

from .placed import on_device_of

TOKENS = 64  # columns of a program


@triton.jit
def _move(table, source, out, cos, sin, columns, o_t, o_g, o_s, c_s, like,
          D: tl.constexpr, R: tl.constexpr, HALF: tl.constexpr, REST: tl.constexpr, TURN: tl.constexpr,
          TOKENS: tl.constexpr):  # fmt: skip
    column = tl.program_id(0) * TOKENS + tl.arange(0, TOKENS)
    head, tensor = tl.program_id(1).to(tl.int64), tl.program_id(2).to(tl.int64)
    half, rest = tl.arange(0, HALF), tl.arange(0, REST)
    old = tl.load(source + column, column < columns, -1)
    live = old >= 0
    entry = table + tensor * 4
    x = tl.load(entry).to(tl.pointer_type(like.dtype.element_ty))
    x_g, x_s, turned = tl.load(entry + 1), tl.load(entry + 2), tl.load(entry + 3)
    # as `cache.move.fits` has seen
    x, x_g, x_s = tl.multiple_of(x, 16), tl.multiple_of(x_g, 8), tl.multiple_of(x_s, 8)
    x += head * x_g
    to = out + tensor * o_t + head * o_g + column.to(tl.int64)[:, None] * o_s
    at = x + old[:, None] * x_s
    both = live[:, None] & (half < R // 2)[None]
    low = tl.load(at + half[None], both, 0.0)
    high = tl.load(at + R // 2 + half[None], both, 0.0)
    if TURN:
        angle, turns = column.to(tl.int64)[:, None] * c_s + half[None], both & (half * 0 + turned > 0)[None]
        c, s = tl.load(cos + angle, turns, 1.0), tl.load(sin + angle, turns, 0.0)
        low32, high32 = low.to(tl.float32), high.to(tl.float32)
        low, high = (low32 * c - high32 * s).to(low.dtype), (high32 * c + low32 * s).to(high.dtype)
    tl.store(to + half[None], low, both)
    tl.store(to + R // 2 + half[None], high, both)
    if D > R:
        left = live[:, None] & (rest < D - R)[None]
        tl.store(to + R + rest[None], tl.load(at + R + rest[None], left, 0.0), left)


def move(
    table_T4: Tensor, source_S: Tensor, out_TGSD: Tensor, turning: tuple[Tensor, Tensor] | None, rotary_dim: int
) -> None:
    """out[t, :, s] = tensor t[:, source[s]] in one pass; columns whose source is -1 are left alone.

    Args:
        table_T4: Of int64, a row for each tensor (G, S, D): address, strides of heads and columns, 1 if it is rotated.
        source_S: Of int64, for the first S columns of `out`.
        out_TGSD: Contiguous rows; of the tensors' dtype.
        turning: Cos and sin (S, R), fp32, in the layout of halves, for those that are rotated.
        rotary_dim: R.
    """
    T, G, _, D = out_TGSD.shape
    S, R = len(source_S), rotary_dim
    cos, sin = turning if turning is not None else (source_S, source_S)
    grid: Any = (triton.cdiv(S, TOKENS), G, T)
    with on_device_of(table_T4):
        _move[grid](
            table_T4, source_S, out_TGSD, cos, sin, S, *out_TGSD.stride()[:3], cos.stride(0), out_TGSD,
            D=D, R=R, HALF=triton.next_power_of_2(max(R // 2, 8)), REST=triton.next_power_of_2(max(D - R, 8)),
            TURN=turning is not None, TOKENS=TOKENS,
        )  # fmt: skip
