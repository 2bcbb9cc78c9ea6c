"""Rows of two tensors side by side, some of them summed in fp32 and some left out, in Triton: one launch, one pass."""

# mypy: disable-error-code="no-untyped-def"
# S given rows, G heads, D head dim, N rows that result, R given rows of each of them at most
from __future__ import annotations

from typing import Any

import torch
import triton
import triton.language as tl
from torch import Tensor

from .placed import on_device_of

ROWS = 32  # rows of a program


@triton.jit
def _sum_rows(left, right, sources, out, rows, most, heads, l_s, l_g, r_s, r_g,
              D: tl.constexpr, DP: tl.constexpr, ROWS: tl.constexpr):  # fmt: skip
    row, dim = tl.program_id(0) * ROWS + tl.arange(0, ROWS), tl.arange(0, DP)
    head = tl.program_id(1).to(tl.int64)
    live = row < rows
    in_left = tl.zeros((ROWS, DP), tl.float32)
    in_right = tl.zeros((ROWS, DP), tl.float32)
    for n in range(most):
        source = tl.load(sources + n * rows + row, live, -1).to(tl.int64)
        both = (source >= 0)[:, None] & (dim < D)[None]
        in_left += tl.load(left + head * l_g + source[:, None] * l_s + dim[None], both, 0.0).to(tl.float32)
        in_right += tl.load(right + head * r_g + source[:, None] * r_s + dim[None], both, 0.0).to(tl.float32)
    to = out + ((row.to(tl.int64) * heads + head) * (2 * D))[:, None] + dim[None]
    both = live[:, None] & (dim < D)[None]
    tl.store(to, in_left, both)
    tl.store(to + D, in_right, both)


def sum_sources(left_SGD: Tensor, right_SGD: Tensor, sources_RN: Tensor) -> Tensor:
    """(N, G, 2 D) in fp32: each row is the sum of those that `sources` names, of the left beside those of the right.

    Args:
        left_SGD: Fastest with contiguous head dims.
        right_SGD: The same.
        sources_RN: Contiguous, int32; -1 names none.
    """
    left_SGD, right_SGD = (x if x.stride(-1) == 1 else x.contiguous() for x in (left_SGD, right_SGD))
    (R, N), (_, G, D) = sources_RN.shape, left_SGD.shape
    out = torch.empty(N, G, 2 * D, device=left_SGD.device, dtype=torch.float32)
    grid: Any = (triton.cdiv(N, ROWS), G)
    with on_device_of(left_SGD):
        _sum_rows[grid](
            left_SGD, right_SGD, sources_RN, out, N, R, G, *left_SGD.stride()[:2], *right_SGD.stride()[:2],
            D=D, DP=triton.next_power_of_2(D), ROWS=ROWS,
        )  # fmt: skip
    return out
