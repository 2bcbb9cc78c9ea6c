"""Causal attention in a window, in Triton: only the blocks inside the band are touched.

On an H100, 4,096 of 131,072 keys, it takes less than half of flash attention's own window. Forward only: the backward
is another kernel's, which takes the merged output and log-sum-exp.
"""

# mypy: disable-error-code="no-untyped-def"
# B batch, H query heads, G key/value heads, L queries, S keys, D head dim, V that of values
# E what is left of a head dim above 128
from __future__ import annotations

from typing import Any

import torch
import triton
import triton.language as tl
from torch import Tensor

from .placed import on_device_of
from .triton_cap import capped, is_fast

LOG2_E = 1.4426950408889634


@triton.jit
def _step(acc, m, l, q_MD, q_ME, k, v, start, at, size, scale, k_s, v_s, keys,
          D: tl.constexpr, DP: tl.constexpr, EP: tl.constexpr, V: tl.constexpr, VP: tl.constexpr, N: tl.constexpr,
          CAP: tl.constexpr, FAST: tl.constexpr, MASKED: tl.constexpr):  # fmt: skip
    """A block of keys, added to the softmax (m, l, acc) of a block of queries."""
    slot, dim, v_dim = start + tl.arange(0, N), tl.arange(0, DP), tl.arange(0, VP)
    k_at, v_at = k + slot.to(tl.int64)[None] * k_s + dim[:, None], v + slot.to(tl.int64)[:, None] * v_s + v_dim[None]
    k_DN = tl.load(k_at, (slot < keys)[None] & (dim < D)[:, None], 0.0) if MASKED or DP > D else tl.load(k_at)
    v_NV = tl.load(v_at, (slot < keys)[:, None] & (v_dim < V)[None], 0.0) if MASKED or VP > V else tl.load(v_at)
    scores = tl.dot(q_MD, k_DN)
    if EP > 0:
        extra = DP + tl.arange(0, EP)
        k_at, live = k + slot.to(tl.int64)[None] * k_s + extra[:, None], (slot < keys)[None] & (extra < D)[:, None]
        k_EN = tl.load(k_at, live, 0.0) if MASKED or DP + EP > D else tl.load(k_at)
        scores = tl.dot(q_ME, k_EN, scores)
    if CAP > 0.0:
        scores, scale = capped(scores, scale, CAP, FAST), 1.0
    if MASKED:
        distance = at[:, None] - slot[None]
        scores = tl.where((distance >= 0) & (distance < size), scores, float("-inf"))
    top = tl.maximum(m, tl.max(scores, 1) * scale)
    base = tl.where(top == float("-inf"), 0.0, top) if MASKED else top
    weights = tl.math.exp2(scores * scale - base[:, None])
    keep = tl.math.exp2(m - base)
    l = l * keep + tl.sum(weights, 1)
    acc = tl.dot(weights.to(v_NV.dtype), v_NV, acc * keep[:, None])
    return acc, top, l


@triton.jit
def _window(q, k, v, out, lse, scale, length, keys, size, heads, q_b, q_h, q_l, k_b, k_h, k_s, v_b, v_h, v_s,
            o_b, o_l, o_h, l_b, l_h, D: tl.constexpr, DP: tl.constexpr, EP: tl.constexpr, V: tl.constexpr,
            VP: tl.constexpr, GROUP: tl.constexpr, M: tl.constexpr, N: tl.constexpr, CAP: tl.constexpr,
            FAST: tl.constexpr):  # fmt: skip
    first = tl.program_id(0) * M
    batch, head = (tl.program_id(1) // heads).to(tl.int64), tl.program_id(1) % heads
    row, dim = first + tl.arange(0, M), tl.arange(0, DP)
    live = (row < length)[:, None] & (dim < D)[None]
    q_at = q + batch * q_b + head * q_h + row.to(tl.int64)[:, None] * q_l
    q_MD = tl.load(q_at + dim[None], live, 0.0)
    q_ME = q_MD
    if EP > 0:
        extra = DP + tl.arange(0, EP)
        q_ME = tl.load(q_at + extra[None], (row < length)[:, None] & (extra < D)[None], 0.0)
    k += batch * k_b + (head // GROUP) * k_h
    v += batch * v_b + (head // GROUP) * v_h
    shift = keys - length  # the slot of query 0: queries and keys end together
    at = row + shift
    last = tl.minimum(first + M, length) - 1 + shift
    low = tl.maximum(first + shift - size + 1, 0) // N * N
    edge = tl.maximum(tl.cdiv(tl.maximum(last - size + 1, 0), N) * N, low)  # from here every row sees a whole block
    full = tl.maximum((first + shift + 1) // N * N, edge)  # up to here
    end = last + 1
    m = tl.full((M,), float("-inf"), tl.float32)
    l = tl.zeros((M,), tl.float32)
    acc = tl.zeros((M, VP), tl.float32)
    for start in range(low, tl.minimum(edge, end), N):
        acc, m, l = _step(acc, m, l, q_MD, q_ME, k, v, start, at, size, scale, k_s, v_s, keys,
                          D, DP, EP, V, VP, N, CAP, FAST, True)  # fmt: skip
    for start in range(edge, full, N):
        acc, m, l = _step(acc, m, l, q_MD, q_ME, k, v, start, at, size, scale, k_s, v_s, keys,
                          D, DP, EP, V, VP, N, CAP, FAST, False)  # fmt: skip
    for start in range(full, end, N):
        acc, m, l = _step(acc, m, l, q_MD, q_ME, k, v, start, at, size, scale, k_s, v_s, keys,
                          D, DP, EP, V, VP, N, CAP, FAST, True)  # fmt: skip
    v_dim = tl.arange(0, VP)
    to = out + batch * o_b + row.to(tl.int64)[:, None] * o_l + head * o_h + v_dim[None]
    tl.store(to, acc / l[:, None], (row < length)[:, None] & (v_dim < V)[None])
    tl.store(lse + batch * l_b + head * l_h + row, (m + tl.math.log2(l)) / 1.4426950408889634, row < length)


# rows of queries, rows of keys, warps, pipeline stages; by the largest padded head dim. To 128 the fastest of a sweep
# on an H100; above, what fits its shared memory and registers
TILES = {128: (128, 64, 8, 3), 192: (128, 64, 8, 3), 256: (128, 64, 8, 2)}


def window_attention(
    q_BHLD: Tensor, k_BGSD: Tensor, v_BGSD: Tensor, size: int, scale: float, softcap: float | None = None,
    tiles: tuple[int, ...] | None = None,
) -> tuple[Tensor, Tensor]:  # fmt: skip
    """Each query sees the `size` keys up to its own; queries and keys end together.

    Returns out (B, L, H, V) and lse (B, H, L).
    """
    B, H, L, D = q_BHLD.shape
    G, S = k_BGSD.shape[1:3]
    q, k, v = (x if x.stride(-1) == 1 else x.contiguous() for x in (q_BHLD, k_BGSD, v_BGSD))
    V = v.shape[-1]
    out = torch.empty(B, L, H, V, device=q.device, dtype=q.dtype)
    lse = torch.empty(B, H, L, device=q.device, dtype=torch.float32)
    dim, v_dim = (max(16, triton.next_power_of_2(n)) for n in (D, V))
    extra = max(16, triton.next_power_of_2(D - 128)) if 128 < D <= 192 else 0  # 192 is 128 + 64, not 256 with zeros
    dim = 128 if extra else dim
    M, N, warps, stages = tiles or next(t for width, t in TILES.items() if max(dim + extra, v_dim) <= width)
    sizes = {"D": D, "DP": dim, "EP": extra, "V": V, "VP": v_dim}
    sizes |= {"GROUP": H // G, "M": M, "N": N, "CAP": softcap * LOG2_E if softcap else 0.0, "FAST": is_fast(q.dtype)}
    grid: Any = (triton.cdiv(L, M), B * H)
    strides = (*q.stride()[:3], *k.stride()[:3], *v.stride()[:3], *out.stride()[:3], *lse.stride()[:2])
    options = {"num_warps": warps, "num_stages": stages}
    with on_device_of(q):
        _window[grid](q, k, v, out, lse, scale * LOG2_E, L, S, min(size, S), H, *strides, **sizes, **options)
    return out, lse
