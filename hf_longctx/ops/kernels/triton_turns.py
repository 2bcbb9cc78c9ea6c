"""Rows of a table of cosines and sines, taken by distance, in Triton: one launch for the window of a step."""

# mypy: disable-error-code="no-untyped-def"
# B batch, S keys, N distances, R rotary dims
from __future__ import annotations

from typing import Any

import torch
import triton
import triton.language as tl
from torch import Tensor

from .placed import on_device_of

ELEMENTS = 4096  # numbers of a program


@triton.jit
def _turns(cos, sin, q_pos, k_pos, to_cos, to_sin, keys, distances, q_b, k_b, R: tl.constexpr, RP: tl.constexpr,
           ROWS: tl.constexpr):  # fmt: skip
    batch, key, dim = tl.program_id(1).to(tl.int64), tl.program_id(0) * ROWS + tl.arange(0, ROWS), tl.arange(0, RP)
    live = key < keys
    at = tl.load(k_pos + batch * k_b + key, live, -1)
    distance = tl.load(q_pos + batch * q_b) - at
    seen = live & (at >= 0) & (distance >= 0) & (distance < distances)
    some = seen[:, None] & (dim < R)[None]
    from_table = distance[:, None] * R + dim[None]
    to = (batch * keys + key)[:, None] * R + dim[None]
    both = live[:, None] & (dim < R)[None]
    tl.store(to_cos + to, tl.load(cos + from_table, some, 0.0), both)
    tl.store(to_sin + to, tl.load(sin + from_table, some, 0.0), both)


def turns(cos_NR: Tensor, sin_NR: Tensor, q_pos_B1: Tensor, k_pos_BS: Tensor) -> tuple[Tensor, Tensor]:
    """(B, S, R) each: the row of each key's distance, of contiguous tables; zeros where it has none, or is unseen."""
    B, S = k_pos_BS.shape
    N, R = cos_NR.shape
    k_pos = k_pos_BS if k_pos_BS.stride(-1) == 1 else k_pos_BS.contiguous()
    q_pos = q_pos_B1.expand(B, 1)
    found = [torch.empty(B, S, R, dtype=x.dtype, device=x.device) for x in (cos_NR, sin_NR)]
    width = triton.next_power_of_2(R)
    rows = max(ELEMENTS // width, 1)
    grid: Any = (triton.cdiv(S, rows), B)
    with on_device_of(cos_NR):
        _turns[grid](
            cos_NR, sin_NR, q_pos, k_pos, *found, S, N, q_pos.stride(0), k_pos.stride(0), R=R, RP=width, ROWS=rows
        )
    return found[0], found[1]
