"""Soft-capping of scores inside Triton kernels."""

# mypy: disable-error-code="no-untyped-def"
from __future__ import annotations

import os

import torch
import triton
import triton.language as tl


def is_fast(dtype: torch.dtype) -> bool:
    """Is the card's own approximation of tanh good enough? It is to 5e-4 of a score; bf16 keeps scores to 4e-3."""
    return dtype == torch.bfloat16 and os.environ.get("TRITON_INTERPRET") != "1"


@triton.jit
def capped(scores, scale, CAP: tl.constexpr, FAST: tl.constexpr = False, PRECISE: tl.constexpr = False):
    """CAP tanh(scores * scale / CAP), by exp2 alone; to 2e-7 CAP, or, if precise, to fp32's own rounding.

    Fast: by one instruction of the card, as in flash attention.
    """
    if FAST:
        x = scores * (scale / CAP)
        return CAP * tl.inline_asm_elementwise("tanh.approx.f32 $0, $1;", "=f,f", [x], tl.float32, True, 1)
    out = CAP - (2.0 * CAP) / (1.0 + tl.math.exp2(scores * (scale * (2.8853900817779268 / CAP))))
    if PRECISE:
        # near 0 this difference has lost its digits
        x = scores * (scale / CAP)
        square = x * x
        series = 0.1333333333 + square * (-0.0539682540 + square * (0.0218694885 - square * 0.0088632355))
        out = tl.where(square < 0.09, CAP * (x + x * square * (-0.3333333333 + square * series)), out)
    return out
