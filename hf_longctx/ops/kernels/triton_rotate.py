"""Rotary embedding in one pass on a GPU: what eager torch does in six."""

# mypy: disable-error-code="no-untyped-def"
# B batch, H heads, L tokens, D head dim, R rotary dims
from __future__ import annotations

from typing import Any

import torch
import triton
import triton.language as tl
from torch import Tensor

from .placed import on_device_of


@triton.jit
def _rotate(x, out, cos, sin, heads, length, x_b, x_h, x_l, o_b, o_h, o_l, c_b, c_l,
            R: tl.constexpr, HALF: tl.constexpr, TOKENS: tl.constexpr):  # fmt: skip
    token = tl.program_id(0) * TOKENS + tl.arange(0, TOKENS)
    batch, head = tl.program_id(1) // heads, tl.program_id(1) % heads
    half = tl.arange(0, HALF)
    live = (token < length)[:, None] & (half < R // 2)[None, :]
    at = batch.to(tl.int64) * x_b + head * x_h + token.to(tl.int64)[:, None] * x_l + half[None, :]
    to = batch.to(tl.int64) * o_b + head * o_h + token.to(tl.int64)[:, None] * o_l + half[None, :]
    angle = batch.to(tl.int64) * c_b + token.to(tl.int64)[:, None] * c_l + half[None, :]
    low = tl.load(x + at, live, 0.0).to(tl.float32)
    high = tl.load(x + at + R // 2, live, 0.0).to(tl.float32)
    cos_low, cos_high = tl.load(cos + angle, live, 0.0), tl.load(cos + angle + R // 2, live, 0.0)
    sin_low, sin_high = tl.load(sin + angle, live, 0.0), tl.load(sin + angle + R // 2, live, 0.0)
    tl.store(out + to, low * cos_low.to(tl.float32) - high * sin_low.to(tl.float32), live)
    tl.store(out + to + R // 2, high * cos_high.to(tl.float32) + low * sin_high.to(tl.float32), live)


def rotate(x_BHLD: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    """Rotate the first R dims, x cos + rotate_half(x) sin with cos and sin (B or 1, L or 1, R); the rest pass."""
    B, H, L, D = x_BHLD.shape
    R = cos.shape[-1]
    x = x_BHLD if x_BHLD.stride(-1) == 1 else x_BHLD.contiguous()
    out: Tensor = torch.empty_like(x)
    if R < D:
        out[..., R:] = x[..., R:]
    cos, sin = (t.expand(B, L, R) for t in (cos, sin))
    if cos.stride(-1) != 1 or sin.stride() != cos.stride():
        cos, sin = cos.contiguous(), sin.contiguous()
    tokens = 64
    grid: Any = (triton.cdiv(L, tokens), B * H)
    strides = (*x.stride()[:3], *out.stride()[:3], *cos.stride()[:2])
    with on_device_of(x):
        _rotate[grid](x, out, cos, sin, H, L, *strides, R=R, HALF=triton.next_power_of_2(R // 2), TOKENS=tokens)
    return out
