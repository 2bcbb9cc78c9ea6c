"""Merges attention to a folded prefix (`ops/prefix.py`) with attention to each row's own keys, in one pass."""

# mypy: disable-error-code="no-untyped-def"
# B batch, H query heads, G key/value heads, D head dim, C parts of own keys, N parts of a prefix, R = B H/G
from __future__ import annotations

from typing import Any

import torch
import triton
import triton.language as tl
from torch import Tensor

from .placed import on_device_of

ROWS = 16  # queries of a program


@triton.jit
def _merge(own, own_lse, part, part_lse, out, out_lse, count, parts, heads, total, p_g, p_r, p_n, l_g, l_n, l_r,
           D: tl.constexpr, DP: tl.constexpr, GROUP: tl.constexpr, ROWS: tl.constexpr):  # fmt: skip
    row, dim = (tl.program_id(0) * ROWS + tl.arange(0, ROWS)).to(tl.int64), tl.arange(0, DP)
    live, dim_live = row < total, dim < D
    group, folded = row % heads // GROUP, row // heads * GROUP + row % GROUP
    both = live[:, None] & dim_live[None]
    top = tl.full((ROWS,), float("-inf"), tl.float32)
    for c in range(count):
        top = tl.maximum(top, tl.load(own_lse + c * total + row, live, float("-inf")))
    for n in range(parts):
        lse = tl.load(part_lse + n * l_n + group * l_g + folded * l_r, live, float("-inf"))
        top = tl.maximum(top, lse * 1.4426950408889634)
    base = tl.where(top == float("-inf"), 0.0, top)
    norm = tl.zeros((ROWS,), tl.float32)
    acc = tl.zeros((ROWS, DP), tl.float32)
    for c in range(count):
        weight = tl.math.exp2(tl.load(own_lse + c * total + row, live, float("-inf")) - base)
        norm += weight
        values = tl.load(own + (c * total + row)[:, None] * D + dim[None], both, 0.0)
        acc += values.to(tl.float32) * weight[:, None]
    for n in range(parts):
        lse = tl.load(part_lse + n * l_n + group * l_g + folded * l_r, live, float("-inf"))
        weight = tl.math.exp2(lse * 1.4426950408889634 - base)
        norm += weight
        at = part + (n * p_n + folded * p_r + group * p_g)[:, None] + dim[None]
        acc += tl.load(at, both, 0.0).to(tl.float32) * weight[:, None]
    safe = tl.where(norm == 0.0, 1.0, norm)
    tl.store(out + row[:, None] * D + dim[None], acc / safe[:, None], both)
    tl.store(out_lse + row, tl.where(norm == 0.0, float("-inf"), base + tl.math.log2(safe)), live)


def merge_folded(
    own_CBHD: Tensor, own_lse_CBH: Tensor, out_GRND: Tensor, lse_GNR: Tensor, dtype: torch.dtype
) -> tuple[Tensor, Tensor]:
    """Parts of one softmax as one.

    `own` is contiguous, fp32, with a log-sum-exp to base 2, as `triton_decode.decode_parts` gives it; the others are of
    a folded prefix, whose rows are (batch, the heads that share keys), with a natural log-sum-exp.

    Returns:
        out (1, B, H, D) in `dtype` and lse (1, B, H), fp32, to base 2: in the form of the first two.
    """
    C, B, H, D = own_CBHD.shape
    G, N, _ = lse_GNR.shape
    out_GRND = out_GRND if out_GRND.stride(-1) == 1 else out_GRND.contiguous()
    out = torch.empty(1, B, H, D, device=own_CBHD.device, dtype=dtype)
    lse = torch.empty(1, B, H, device=own_CBHD.device, dtype=torch.float32)
    grid: Any = (triton.cdiv(B * H, ROWS),)
    with on_device_of(own_CBHD):
        _merge[grid](
            own_CBHD, own_lse_CBH, out_GRND, lse_GNR, out, lse, C, N, H, B * H, *out_GRND.stride()[:3],
            *lse_GNR.stride(), D=D, DP=triton.next_power_of_2(D), GROUP=H // G, ROWS=ROWS,
        )  # fmt: skip
    return out, lse
