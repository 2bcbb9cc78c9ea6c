"""Causal attention of a few queries at any places of one text, in Triton: what each sees follows from its position.

Positions are data, so one recorded CUDA graph serves every choice of places. The keys are cut into parts, so that a few
queries fill a whole card, and parts are merged by log-sum-exp (https://arxiv.org/abs/2205.14135).
"""

# mypy: disable-error-code="no-untyped-def"
# H query heads, G key/value heads, L queries, S columns of the keys, P parts, D head dim
from __future__ import annotations

from typing import Any

import torch
import triton
import triton.language as tl
from torch import Tensor

from .placed import on_device_of
from .triton_decode import LOG2_E, merge

PARTS, SMALLEST = 8, 1024  # at most 8 parts, of at least 1024 keys
# queries and keys of a tile, warps, pipeline stages; by padded head dim
TILES = {64: (64, 64, 4, 3), 128: (64, 64, 4, 3), 256: (64, 32, 8, 2)}


@triton.jit
def _tile(acc, m, l, q_MD, k, v, start, at, scale, k_s, v_s, keys, dim,
          D: tl.constexpr, DP: tl.constexpr, N: tl.constexpr, MASKED: tl.constexpr):  # fmt: skip
    """One tile of keys, added to the softmax (m, l, acc)."""
    slot = start + tl.arange(0, N)
    wide = slot.to(tl.int64)
    if MASKED:
        k_DN = tl.load(k + wide[None] * k_s + dim[:, None], (slot < keys)[None] & (dim < D)[:, None], 0.0)
        v_ND = tl.load(v + wide[:, None] * v_s + dim[None], (slot < keys)[:, None] & (dim < D)[None], 0.0)
    else:
        k_DN = tl.load(k + wide[None] * k_s + dim[:, None], (dim < D)[:, None], 0.0)
        v_ND = tl.load(v + wide[:, None] * v_s + dim[None], (dim < D)[None], 0.0)
    scores = tl.dot(q_MD, k_DN) * scale
    if MASKED:
        scores = tl.where(slot[None] <= at[:, None], scores, float("-inf"))
    top = tl.maximum(m, tl.max(scores, 1))
    base = tl.where(top == float("-inf"), 0.0, top) if MASKED else top
    weights = tl.math.exp2(scores - base[:, None])
    keep = tl.math.exp2(m - base)
    l = l * keep + tl.sum(weights, 1)
    acc = tl.dot(weights.to(v_ND.dtype), v_ND, acc * keep[:, None])
    return acc, top, l


@triton.jit
def _places(q, k, v, pos, out, lse, scale, queries, keys, unused, length, q_h, q_l, k_g, k_s, v_g, v_s,
            o_p, o_l, o_h, l_p, l_l, D: tl.constexpr, DP: tl.constexpr, GROUP: tl.constexpr,
            M: tl.constexpr, N: tl.constexpr):  # fmt: skip
    """A block of queries of one head over one part of the keys."""
    head, part = tl.program_id(1), tl.program_id(2)
    row, dim = tl.program_id(0) * M + tl.arange(0, M), tl.arange(0, DP)
    live = row < queries
    at = tl.load(pos + row, live, -1).to(tl.int32)
    at = tl.where(at == unused, -1, at)  # such a query sees nothing
    both = live[:, None] & (dim < D)[None]
    q_MD = tl.load(q + head * q_h + row[:, None] * q_l + dim[None], both, 0.0)
    k += (head // GROUP) * k_g
    v += (head // GROUP) * v_g
    first = part * length
    end = tl.minimum(first + length, tl.max(at, 0) + 1)
    # up to here every query sees all; one that sees nothing says so
    full = tl.maximum(tl.minimum((tl.min(tl.where(live, at, 2147483647), 0) + 1) // N * N, end // N * N), first)
    m = tl.full((M,), float("-inf"), tl.float32)
    l = tl.zeros((M,), tl.float32)
    acc = tl.zeros((M, DP), tl.float32)
    for start in range(first, full, N):
        acc, m, l = _tile(acc, m, l, q_MD, k, v, start, at, scale, k_s, v_s, keys, dim, D, DP, N, False)
    for start in range(full, end, N):
        acc, m, l = _tile(acc, m, l, q_MD, k, v, start, at, scale, k_s, v_s, keys, dim, D, DP, N, True)
    norm = tl.where(l == 0.0, 1.0, l)
    tl.store(out + part * o_p + row[:, None] * o_l + head * o_h + dim[None], acc / norm[:, None], both)
    tl.store(lse + part * l_p + row * l_l + head, tl.where(l == 0.0, float("-inf"), m + tl.math.log2(norm)), live)


def attend(q_HLD: Tensor, k_GSD: Tensor, v_GSD: Tensor, pos_L: Tensor, unused: int, scale: float) -> Tensor:
    """(L, H, D): each query over the keys of columns 0 to its own position, in half precision.

    Queries at `pos_L` are best in order, so that a block of them sees about the same; those at `unused` see nothing,
    and come out as 0.
    """
    H, L, D = q_HLD.shape
    G, S = k_GSD.shape[:2]
    q, k, v = (x if x.stride(-1) == 1 else x.contiguous() for x in (q_HLD, k_GSD, v_GSD))
    dim = max(16, triton.next_power_of_2(D))
    M, N, warps, stages = TILES[max(64, dim)]
    parts = max(1, min(PARTS, S // SMALLEST))
    length = triton.cdiv(triton.cdiv(S, N), parts) * N
    part = torch.empty(parts, L, H, D, device=q.device, dtype=torch.float32)
    lse = torch.empty(parts, L, H, device=q.device, dtype=torch.float32)
    strides = (
        *q.stride()[:2], *k.stride()[:2], *v.stride()[:2], *part.stride()[:3], *lse.stride()[:2]
    )  # fmt: skip
    grid: Any = (triton.cdiv(L, M), H, parts)
    with on_device_of(q):
        _places[grid](
            q, k, v, pos_L, part, lse, scale * LOG2_E, L, S, unused, length, *strides,
            D=D, DP=dim, GROUP=H // G, M=M, N=N, num_warps=warps, num_stages=stages,
        )  # fmt: skip
    return merge(part, lse, q.dtype)[0]
