"""A part of a softmax merged into another one, in its memory, in Triton: each number is read and written once."""

# mypy: disable-error-code="no-untyped-def"
# B batch, H query heads, L queries, D head dim
from __future__ import annotations

from typing import Any

import triton
import triton.language as tl
from torch import Tensor

from .placed import on_device_of

ROWS = 32  # queries of a program


@triton.jit
def _merge_rows(out, lse, part, part_lse, rows, o_b, o_l, o_h, s_b, s_h, s_l, p_b, p_l, p_h, t_b, t_h, t_l,
                D: tl.constexpr, DP: tl.constexpr, ROWS: tl.constexpr):  # fmt: skip
    row, dim = (tl.program_id(0) * ROWS + tl.arange(0, ROWS)).to(tl.int64), tl.arange(0, DP)
    head, batch = tl.program_id(1).to(tl.int64), tl.program_id(2).to(tl.int64)
    live = row < rows
    both = live[:, None] & (dim < D)[None]
    lse_at = lse + batch * s_b + head * s_h + row * s_l
    old = tl.load(lse_at, live, float("-inf"))
    new = tl.load(part_lse + batch * t_b + head * t_h + row * t_l, live, float("-inf"))
    top = tl.maximum(old, new)
    base = tl.where(top == float("-inf"), 0.0, top)  # rows without any key stay so
    old_weight, new_weight = tl.exp(old - base), tl.exp(new - base)
    norm = old_weight + new_weight
    safe = tl.where(norm == 0.0, 1.0, norm)
    at = out + (batch * o_b + row * o_l + head * o_h)[:, None] + dim[None]
    other = part + (batch * p_b + row * p_l + head * p_h)[:, None] + dim[None]
    mine = tl.load(at, both, 0.0).to(tl.float32) * (old_weight / safe)[:, None]
    theirs = tl.load(other, both, 0.0).to(tl.float32) * (new_weight / safe)[:, None]
    tl.store(at, mine + theirs, both)
    tl.store(lse_at, tl.where(norm == 0.0, float("-inf"), base + tl.log(safe)), live)


def merge_rows(out_BLHD: Tensor, lse_BHL: Tensor, part_BLHD: Tensor, part_lse_BHL: Tensor) -> None:
    """Overwrite an output and its log-sum-exp, fp32, with those of both. Views are fine if head dims are contiguous."""
    B, L, H, D = out_BLHD.shape
    part_BLHD = part_BLHD if part_BLHD.stride(-1) == 1 else part_BLHD.contiguous()
    grid: Any = (triton.cdiv(L, ROWS), H, B)
    with on_device_of(out_BLHD):
        _merge_rows[grid](
            out_BLHD, lse_BHL, part_BLHD, part_lse_BHL, L, *out_BLHD.stride()[:3], *lse_BHL.stride(),
            *part_BLHD.stride()[:3], *part_lse_BHL.stride(), D=D, DP=triton.next_power_of_2(D), ROWS=ROWS,
        )  # fmt: skip
