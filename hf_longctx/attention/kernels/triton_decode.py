"""Attention of one query a row over un-rotated keys, in Triton: keys are rotated as they are read.

The keys are cut into parts, so that one row alone fills the card; every part leaves its output and log-sum-exp, and a
second kernel merges them (flash decoding; https://arxiv.org/abs/2205.14135 for the merge). Several sets of keys, each
with its own rotations and distances, are parts of one softmax.
"""

# mypy: disable-error-code="no-untyped-def"
# B batch, H query heads, G key/value heads, S keys, D head dim, R rotary dims, P parts
from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
import triton
import triton.language as tl
from torch import Tensor

LOG2_E = 1.4426950408889634
# keys of a step, warps, pipeline stages, programs for each multiprocessor. TODO: choose them by a sweep on a GPU; these
# fit its shared memory at every head dim
HALF, FULL = (64, 4, 3, 4), (16, 4, 1, 4)


@triton.jit
def _rotated(x, cos, sin, wide, live, R2: tl.constexpr, ROTATE: tl.constexpr):
    """The two rotated halves at x: the model's x cos + (-high, low) sin, in fp32, rounded to its own dtype."""
    low = tl.load(x, wide & live, 0.0)
    high = tl.load(x + R2, wide & live, 0.0)
    if ROTATE:
        c, s = tl.load(cos, wide & live, 0.0).to(tl.float32), tl.load(sin, wide & live, 0.0).to(tl.float32)
        low32, high32 = low.to(tl.float32), high.to(tl.float32)
        low, high = (low32 * c - high32 * s).to(low.dtype), (high32 * c + low32 * s).to(high.dtype)
    return low, high


@triton.jit
def _part(q, k, v, q_cos, q_sin, k_cos, k_sin, q_pos, k_pos, out, lse, scale, near, far, keys, tiles, first, groups,
          q_b, q_h, k_b, k_h, k_s, v_b, v_h, v_s, qc_b, kc_b, kc_s, qp_b, kp_b, o_p, o_b, o_h, l_p, l_b,
          D: tl.constexpr, DP: tl.constexpr, R2: tl.constexpr, RP: tl.constexpr, EP: tl.constexpr,
          GROUP: tl.constexpr, GP: tl.constexpr, N: tl.constexpr, Q_ROTATE: tl.constexpr,
          K_ROTATE: tl.constexpr):  # fmt: skip
    batch, group, part = (tl.program_id(0) // groups).to(tl.int64), tl.program_id(0) % groups, tl.program_id(1)
    row, half, dim, extra = tl.arange(0, GP), tl.arange(0, RP), tl.arange(0, DP), tl.arange(0, EP)
    head_live, half_live, dim_live, extra_live = row < GROUP, half < R2, dim < D, extra < D - 2 * R2
    at_q = q + batch * q_b + (group * GROUP + row[:, None]) * q_h
    q_turn = batch * qc_b + half[None]
    q_low, q_high = _rotated(at_q + half[None], q_cos + q_turn, q_sin + q_turn, half_live[None],
                             head_live[:, None], R2, Q_ROTATE)  # fmt: skip
    if D > 2 * R2:
        q_rest = tl.load(at_q + 2 * R2 + extra[None], head_live[:, None] & extra_live[None], 0.0)
    here = tl.load(q_pos + batch * qp_b)
    k += batch * k_b + group * k_h
    v += batch * v_b + group * v_h
    m = tl.full((GP,), float("-inf"), tl.float32)
    l = tl.zeros((GP,), tl.float32)
    acc = tl.zeros((GP, DP), tl.float32)
    for tile in range(part * tiles, part * tiles + tiles):
        slot = tile * N + tl.arange(0, N)
        live = slot < keys
        at_k = tl.load(k_pos + batch * kp_b + slot, live, -1)
        distance = here - at_k
        seen = live & (at_k >= 0) & (here >= 0) & (distance >= near) & (distance < far)
        wide = slot.to(tl.int64)[:, None]
        turn = batch * kc_b + wide * kc_s + half[None]
        low, high = _rotated(k + wide * k_s + half[None], k_cos + turn, k_sin + turn, half_live[None],
                             live[:, None], R2, K_ROTATE)  # fmt: skip
        scores = tl.dot(q_low, tl.trans(low), input_precision="ieee")
        scores = tl.dot(q_high, tl.trans(high), scores, input_precision="ieee")
        if D > 2 * R2:
            rest = tl.load(k + wide * k_s + 2 * R2 + extra[None], live[:, None] & extra_live[None], 0.0)
            scores = tl.dot(q_rest, tl.trans(rest), scores, input_precision="ieee")
        scores = tl.where(seen[None], scores * scale, float("-inf"))
        top = tl.maximum(m, tl.max(scores, 1))
        base = tl.where(top == float("-inf"), 0.0, top)
        weights, keep = tl.math.exp2(scores - base[:, None]), tl.math.exp2(m - base)
        l = l * keep + tl.sum(weights, 1)
        values = tl.load(v + wide * v_s + dim[None], live[:, None] & dim_live[None], 0.0)
        acc = tl.dot(weights.to(values.dtype), values, acc * keep[:, None], input_precision="ieee")
        m = top
    norm = tl.where(l == 0.0, 1.0, l)
    heads = group * GROUP + row
    to = out + (first + part) * o_p + batch * o_b + heads[:, None] * o_h + dim[None]
    tl.store(to, acc / norm[:, None], head_live[:, None] & dim_live[None])
    total = tl.where(l == 0.0, float("-inf"), m + tl.math.log2(norm))
    tl.store(lse + (first + part) * l_p + batch * l_b + heads, total, head_live)


@triton.jit
def _merge(part, part_lse, out, lse, parts, heads, p_p, p_b, p_h, l_p, l_b, o_b, o_h,
           D: tl.constexpr, DP: tl.constexpr, PP: tl.constexpr, STEP: tl.constexpr):  # fmt: skip
    batch, head = (tl.program_id(0) // heads).to(tl.int64), tl.program_id(0) % heads
    every, dim = tl.arange(0, PP), tl.arange(0, DP)
    all_lse = tl.load(part_lse + every * l_p + batch * l_b + head, every < parts, float("-inf"))
    top = tl.max(all_lse, 0)
    base = tl.where(top == float("-inf"), 0.0, top)
    total = tl.sum(tl.math.exp2(all_lse - base), 0)
    norm = tl.where(total == 0.0, 1.0, total)
    acc = tl.zeros((DP,), tl.float32)
    for start in range(0, parts, STEP):
        one = start + tl.arange(0, STEP)
        share = tl.load(part_lse + one * l_p + batch * l_b + head, one < parts, float("-inf"))
        weight = tl.math.exp2(share - base) / norm
        at = part + one.to(tl.int64)[:, None] * p_p + batch * p_b + head * p_h + dim[None]
        acc += tl.sum(tl.load(at, (one < parts)[:, None] & (dim < D)[None], 0.0) * weight[:, None], 0)
    tl.store(out + batch * o_b + head * o_h + dim, acc, dim < D)
    whole = tl.where(total == 0.0, float("-inf"), (base + tl.math.log2(norm)) / 1.4426950408889634)
    tl.store(lse + tl.program_id(0), whole)


@dataclass(frozen=True)
class Keys:
    """One set of keys: un-rotated (B, G, S, D), the rotations (cos, sin) of query and keys, and which distances exist.

    cos and sin are (B or 1, 1 or S, R) with equal halves; None where a side is right as it is.
    """

    k_BGSD: Tensor
    v_BGSD: Tensor
    k_pos_BS: Tensor
    q_turn: tuple[Tensor, Tensor] | None
    k_turn: tuple[Tensor, Tensor] | None
    near: int
    far: int


def decode(q_BHD: Tensor, sets: list[Keys], q_pos_B: Tensor, rotary_dim: int, scale: float) -> tuple[Tensor, Tensor]:
    """Softmax attention of one query a row over the union of several sets of keys.

    Returns out (B, H, D) in q's dtype and lse (B, H) fp32; a row without keys gets zeros and -inf.
    """
    part, part_lse = decode_parts(q_BHD, sets, q_pos_B, rotary_dim, scale)
    count, B, H, D = part.shape
    out = torch.empty_like(q_BHD, memory_format=torch.contiguous_format)
    lse = torch.empty(B, H, device=q_BHD.device, dtype=torch.float32)
    strides = (*part.stride()[:3], *part_lse.stride()[:2], *out.stride()[:2])
    sizes = {"D": D, "DP": triton.next_power_of_2(D), "PP": triton.next_power_of_2(count), "STEP": 8}
    grid: Any = (B * H,)
    _merge[grid](part, part_lse, out, lse, count, H, *strides, **sizes)
    return out, lse


def decode_parts(
    q_BHD: Tensor, sets: list[Keys], q_pos_B: Tensor, rotary_dim: int, scale: float
) -> tuple[Tensor, Tensor]:
    """`decode` before its parts are merged: (C, B, H, D) and their log-sum-exps to base 2, (C, B, H), fp32."""
    B, H, D = q_BHD.shape
    G = sets[0].k_BGSD.shape[1]
    settings = FULL if q_BHD.dtype == torch.float32 else HALF
    cuts = [_cut(keys.k_BGSD.shape[2], B * G, q_BHD.device, settings) for keys in sets]
    count = sum(parts for _, parts in cuts)
    part = torch.empty(count, B, H, D, device=q_BHD.device, dtype=torch.float32)
    part_lse = torch.empty(count, B, H, device=q_BHD.device, dtype=torch.float32)
    first = 0
    for keys, (tiles, parts) in zip(sets, cuts, strict=True):
        _launch(q_BHD, keys, q_pos_B, rotary_dim, scale, part, part_lse, first, tiles, parts, settings)
        first += parts
    return part, part_lse


def _cut(keys: int, rows: int, device: torch.device, settings: tuple[int, ...]) -> tuple[int, int]:
    """Tiles of a part and number of parts: enough programs to fill the card, none of them without a tile."""
    tile, _, _, waves = settings
    processors = torch.cuda.get_device_properties(device).multi_processor_count if device.type == "cuda" else 4
    tiles = triton.cdiv(keys, tile)
    each = triton.cdiv(tiles, max(1, waves * processors // rows))
    return each, triton.cdiv(tiles, each)


def _launch(
    q: Tensor, keys: Keys, q_pos: Tensor, rotary_dim: int, scale: float, part: Tensor, part_lse: Tensor, first: int,
    tiles: int, parts: int, settings: tuple[int, ...],
) -> None:  # fmt: skip
    B, H, D = q.shape
    k, v = (x if x.stride(-1) == 1 else x.contiguous() for x in (keys.k_BGSD, keys.v_BGSD))
    G, S = k.shape[1:3]
    q_turn, k_turn = keys.q_turn, keys.k_turn
    q_cos, q_sin = (x.expand(B, 1, rotary_dim) for x in q_turn) if q_turn is not None else (q[:, :1], q[:, :1])
    k_cos, k_sin = (x.expand(B, S, rotary_dim) for x in k_turn) if k_turn is not None else (k[:, 0], k[:, 0])
    at_k = keys.k_pos_BS.expand(B, S)
    half = rotary_dim // 2
    strides = (
        *q.stride()[:2], *k.stride()[:3], *v.stride()[:3], q_cos.stride(0), *k_cos.stride()[:2], q_pos.stride(0),
        at_k.stride(0), *part.stride()[:3], *part_lse.stride()[:2],
    )  # fmt: skip
    sizes = {
        "D": D, "DP": max(16, triton.next_power_of_2(D)), "R2": half, "RP": max(16, triton.next_power_of_2(half)),
        "EP": max(16, triton.next_power_of_2(max(D - rotary_dim, 1))), "GROUP": H // G,
        "GP": max(16, triton.next_power_of_2(H // G)), "N": settings[0], "Q_ROTATE": q_turn is not None,
        "K_ROTATE": k_turn is not None,
    }  # fmt: skip
    _part[(B * G, parts)](
        q, k, v, q_cos, q_sin, k_cos, k_sin, q_pos, at_k, part, part_lse, scale * LOG2_E, keys.near, keys.far, S,
        tiles, first, G, *strides, **sizes, num_warps=settings[1], num_stages=settings[2],
    )  # fmt: skip
