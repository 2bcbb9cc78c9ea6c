"""Attention of one query a row over un-rotated keys, in Triton: keys are rotated as they are read.

The keys are cut into parts, so that one row alone fills the card; every part leaves its output and log-sum-exp, and a
second kernel merges them (flash decoding; https://arxiv.org/abs/2205.14135 for the merge). Several sets of keys, each
with its own rotations and distances, are parts of one softmax.
"""

# mypy: disable-error-code="no-untyped-def"
# B batch, H query heads, G key/value heads, S keys, D head dim, V that of values, R rotary dims, P parts
from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
import triton
import triton.language as tl
from torch import Tensor

from .placed import on_device_of
from .triton_cap import capped

LOG2_E = 1.4426950408889634
# keys of a step, warps, pipeline stages, programs for each multiprocessor: within a few percent of the best of sweeps
# on an H100, at 8k and 128k keys; fp32 fits its shared memory at every head dim
HALF, FULL = (64, 4, 3, 4), (16, 4, 1, 4)
FEW = 4  # steps that make a program worth its start, as long as every multiprocessor has one


@triton.jit
def _turn(low, high, c, s):
    """The model's x cos + (-high, low) sin for two halves, in fp32."""
    c, s, low, high = c.to(tl.float32), s.to(tl.float32), low.to(tl.float32), high.to(tl.float32)
    return low * c - high * s, high * c + low * s


@triton.jit
def _read(m, l, acc, q, q_cos, q_sin, k, v, k_cos, k_sin, k_pos, here, scale, near, far, keys, first,
          last, q_h, k_s, v_s, kc_s, D: tl.constexpr, V: tl.constexpr, VP: tl.constexpr, R2: tl.constexpr,
          RP: tl.constexpr, EP: tl.constexpr, GROUP: tl.constexpr, GP: tl.constexpr, N: tl.constexpr,
          CAP: tl.constexpr, Q_ROTATE: tl.constexpr, K_ROTATE: tl.constexpr):  # fmt: skip
    """Steps `first` to `last` of one set of keys, added to the softmax (m, l, acc) of one row's group of heads."""
    row, half, dim, extra = tl.arange(0, GP), tl.arange(0, RP), tl.arange(0, VP), tl.arange(0, EP)
    column = tl.arange(0, N)
    head_live, half_live, dim_live, extra_live = row < GROUP, half < R2, dim < V, extra < D - 2 * R2
    at_q, q_live = q + row[:, None] * q_h, head_live[:, None] & half_live[None]
    q_low = tl.load(at_q + half[None], q_live, 0.0)
    q_high = tl.load(at_q + R2 + half[None], q_live, 0.0)
    dtype = q_low.dtype
    if Q_ROTATE:
        q_c, q_s = tl.load(q_cos + half, half_live, 0.0), tl.load(q_sin + half, half_live, 0.0)
        q_low32, q_high32 = _turn(q_low, q_high, q_c[None], q_s[None])
        q_low, q_high = q_low32.to(dtype), q_high32.to(dtype)
    if D > 2 * R2:
        q_rest = tl.load(at_q + 2 * R2 + extra[None], head_live[:, None] & extra_live[None], 0.0)
    for tile in range(first, last):
        slot = tile * N + column
        live = slot < keys
        at_k = tl.load(k_pos + slot, live, -1)
        distance = here - at_k
        seen = live & (at_k >= 0) & (here >= 0) & (distance >= near) & (distance < far)
        wide = slot.to(tl.int64)[:, None]
        k_live = live[:, None] & half_live[None]
        low = tl.load(k + wide * k_s + half[None], k_live, 0.0)
        high = tl.load(k + wide * k_s + R2 + half[None], k_live, 0.0)
        values = tl.load(v + wide * v_s + dim[None], live[:, None] & dim_live[None], 0.0)
        if K_ROTATE:
            turn = wide * kc_s + half[None]
            c, s = tl.load(k_cos + turn, k_live, 0.0), tl.load(k_sin + turn, k_live, 0.0)
            low32, high32 = _turn(low, high, c, s)
            low, high = low32.to(dtype), high32.to(dtype)
        scores = tl.dot(q_low, tl.trans(low), input_precision="ieee")
        scores = tl.dot(q_high, tl.trans(high), scores, input_precision="ieee")
        if D > 2 * R2:
            rest = tl.load(k + wide * k_s + 2 * R2 + extra[None], live[:, None] & extra_live[None], 0.0)
            scores = tl.dot(q_rest, tl.trans(rest), scores, input_precision="ieee")
        scores = scores * scale if CAP == 0.0 else capped(scores, scale, CAP, False, dtype == tl.float32)
        scores = tl.where(seen[None], scores, float("-inf"))
        top = tl.maximum(m, tl.max(scores, 1))
        base = tl.where(top == float("-inf"), 0.0, top)
        weights, keep = tl.math.exp2(scores - base[:, None]), tl.math.exp2(m - base)
        l = l * keep + tl.sum(weights, 1)
        acc = tl.dot(weights.to(values.dtype), values, acc * keep[:, None], input_precision="ieee")
        m = top
    return m, l, acc


@triton.jit
def _part(q, q_pos, out, lse, scale, groups, first, alone, q_b, q_h, qp_b, o_p, o_b, o_h, l_p, l_b,
          k, v, q_cos, q_sin, k_cos, k_sin, k_pos, near, far, keys, tiles,
          k_b, k_h, k_s, v_b, v_h, v_s, qc_b, kc_b, kc_s, kp_b,
          k2, v2, q_cos2, q_sin2, k_cos2, k_sin2, k_pos2, near2, far2, keys2, tiles2,
          k_b2, k_h2, k_s2, v_b2, v_h2, v_s2, qc_b2, kc_b2, kc_s2, kp_b2,
          D: tl.constexpr, V: tl.constexpr, VP: tl.constexpr, R2: tl.constexpr, RP: tl.constexpr, EP: tl.constexpr,
          GROUP: tl.constexpr, GP: tl.constexpr, N: tl.constexpr, CAP: tl.constexpr, Q_ROTATE: tl.constexpr,
          K_ROTATE: tl.constexpr, SECOND: tl.constexpr, Q_ROTATE2: tl.constexpr,
          K_ROTATE2: tl.constexpr):  # fmt: skip
    """A share of one set of keys, and of a second one, for one row's group of heads.

    With `alone` the first set is that of so many parts, and the second one of the parts behind them.
    """
    batch, group, part = (tl.program_id(0) // groups).to(tl.int64), tl.program_id(0) % groups, tl.program_id(1)
    row, dim = tl.arange(0, GP), tl.arange(0, VP)
    here = tl.load(q_pos + batch * qp_b)
    at_q = q + batch * q_b + group * GROUP * q_h
    m = tl.full((GP,), float("-inf"), tl.float32)
    l = tl.zeros((GP,), tl.float32)
    acc = tl.zeros((GP, VP), tl.float32)
    end = part * tiles + tl.where((alone == 0) | (part < alone), tiles, 0)
    m, l, acc = _read(
        m, l, acc, at_q, q_cos + batch * qc_b, q_sin + batch * qc_b, k + batch * k_b + group * k_h,
        v + batch * v_b + group * v_h, k_cos + batch * kc_b, k_sin + batch * kc_b, k_pos + batch * kp_b,
        here, scale, near, far, keys, part * tiles, end, q_h, k_s, v_s, kc_s,
        D, V, VP, R2, RP, EP, GROUP, GP, N, CAP, Q_ROTATE, K_ROTATE)  # fmt: skip
    if SECOND:
        start = (part - alone) * tiles2
        most = tl.minimum(start + tiles2, tl.cdiv(keys2, N))
        m, l, acc = _read(
            m, l, acc, at_q, q_cos2 + batch * qc_b2, q_sin2 + batch * qc_b2, k2 + batch * k_b2 + group * k_h2,
            v2 + batch * v_b2 + group * v_h2, k_cos2 + batch * kc_b2, k_sin2 + batch * kc_b2, k_pos2 + batch * kp_b2,
            here, scale, near2, far2, keys2, tl.maximum(start, 0), most, q_h, k_s2, v_s2, kc_s2,
            D, V, VP, R2, RP, EP, GROUP, GP, N, CAP, Q_ROTATE2, K_ROTATE2)  # fmt: skip
    norm = tl.where(l == 0.0, 1.0, l)
    heads, head_live = group * GROUP + row, row < GROUP
    to = out + (first + part) * o_p + batch * o_b + heads[:, None] * o_h + dim[None]
    tl.store(to, acc / norm[:, None], head_live[:, None] & (dim < V)[None])
    total = tl.where(l == 0.0, float("-inf"), m + tl.math.log2(norm))
    tl.store(lse + (first + part) * l_p + batch * l_b + heads, total, head_live)


@triton.jit
def _merge(part, part_lse, sink, out, lse, parts, heads, p_p, p_b, p_h, l_p, l_b, o_b, o_h, D: tl.constexpr,
           DP: tl.constexpr, PP: tl.constexpr, STEP: tl.constexpr, SINK: tl.constexpr):  # fmt: skip
    batch, head = (tl.program_id(0) // heads).to(tl.int64), tl.program_id(0) % heads
    every, dim = tl.arange(0, PP), tl.arange(0, DP)
    all_lse = tl.load(part_lse + every * l_p + batch * l_b + head, every < parts, float("-inf"))
    top = tl.max(all_lse, 0)
    if SINK:
        logit = tl.load(sink + head).to(tl.float32) * 1.4426950408889634
        top = tl.maximum(top, logit)
    base = tl.where(top == float("-inf"), 0.0, top)
    total = tl.sum(tl.math.exp2(all_lse - base), 0)
    if SINK:
        total += tl.math.exp2(logit - base)
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


def decode(
    q_BHD: Tensor, sets: list[Keys], q_pos_B: Tensor, rotary_dim: int, scale: float, softcap: float | None = None,
    sink_H: Tensor | None = None,
) -> tuple[Tensor, Tensor]:  # fmt: skip
    """Softmax attention of one query a row over the union of several sets of keys.

    Returns out (B, H, V) in q's dtype and lse (B, H) fp32; a row without keys gets zeros and -inf.
    """
    return merge(*decode_parts(q_BHD, sets, q_pos_B, rotary_dim, scale, softcap), q_BHD.dtype, sink_H)


def merge(
    part_CBHD: Tensor, lse_CBH: Tensor, dtype: torch.dtype, sink_H: Tensor | None = None
) -> tuple[Tensor, Tensor]:
    """Parts of one softmax, fp32, with log-sum-exps to base 2, as one: out (B, H, D) in `dtype`, lse (B, H) fp32."""
    count, B, H, D = part_CBHD.shape
    out = torch.empty(B, H, D, device=part_CBHD.device, dtype=dtype)
    lse = torch.empty(B, H, device=part_CBHD.device, dtype=torch.float32)
    strides = (*part_CBHD.stride()[:3], *lse_CBH.stride()[:2], *out.stride()[:2])
    sizes = {"D": D, "DP": triton.next_power_of_2(D), "PP": triton.next_power_of_2(count), "STEP": 8}
    sizes["SINK"] = sink_H is not None
    sink = lse_CBH if sink_H is None else sink_H.contiguous()
    grid: Any = (B * H,)
    with on_device_of(part_CBHD):
        _merge[grid](part_CBHD, lse_CBH, sink, out, lse, count, H, *strides, **sizes)
    return out, lse


def decode_parts(
    q_BHD: Tensor, sets: list[Keys], q_pos_B: Tensor, rotary_dim: int, scale: float, softcap: float | None = None
) -> tuple[Tensor, Tensor]:
    """`decode` before its parts are merged: (C, B, H, V) and their log-sum-exps to base 2, (C, B, H), fp32."""
    B, H, _ = q_BHD.shape
    G, V = sets[0].k_BGSD.shape[1], sets[0].v_BGSD.shape[-1]
    settings = FULL if q_BHD.dtype == torch.float32 else HALF
    sets = sorted(sets, key=lambda keys: -keys.k_BGSD.shape[2])
    pairs = [sets[i : i + 2] for i in range(0, len(sets), 2)]  # a launch each
    cuts = [cut(pair[0].k_BGSD.shape[2], B * G, q_BHD.device, settings) for pair in pairs]
    count = sum(parts for _, parts in cuts)
    part = torch.empty(count, B, H, V, device=q_BHD.device, dtype=torch.float32)
    part_lse = torch.empty(count, B, H, device=q_BHD.device, dtype=torch.float32)
    first = 0
    for pair, (tiles, parts) in zip(pairs, cuts, strict=True):
        launch(q_BHD, pair, q_pos_B, rotary_dim, scale, softcap, part, part_lse, first, tiles, parts, settings)
        first += parts
    return part, part_lse


def cut(keys: int, rows: int, device: torch.device, settings: tuple[int, ...]) -> tuple[int, int]:
    """Tiles of a part and number of parts: enough programs to fill the card, none of them without a tile."""
    tile, _, _, waves = settings
    processors = torch.cuda.get_device_properties(device).multi_processor_count if device.type == "cuda" else 4
    tiles = triton.cdiv(keys, tile)
    most, one_each = max(1, waves * processors // rows), max(1, processors // rows)
    each = max(triton.cdiv(tiles, most), min(FEW, triton.cdiv(tiles, one_each)))
    return each, triton.cdiv(tiles, each)


def launch(
    q: Tensor, sets: list[Keys], q_pos: Tensor, rotary_dim: int, scale: float, softcap: float | None, part: Tensor,
    part_lse: Tensor, first: int, tiles: int, parts: int, settings: tuple[int, ...], alone: int = 0,
) -> None:  # fmt: skip
    """Compute parts of so many tiles, from number `first` on, of one or two sets of keys, the longer one first.

    With `alone` the first set's parts are so many of these, and the others are the second set's.
    """
    B, H, D = q.shape
    q_pos = q_pos.expand(B)  # a stride of 0 where rows stand at one position
    G, half, V = sets[0].k_BGSD.shape[1], rotary_dim // 2, part.shape[-1]
    longest = sets[0]
    tiles_of = [tiles, triton.cdiv(triton.cdiv(sets[-1].k_BGSD.shape[2], settings[0]), parts - alone)]
    # where there is no second set, the first one's arguments stand in, unread
    two = [x for keys, each in zip((sets[0], sets[-1]), tiles_of, strict=True) for x in _arguments(keys, q, half, each)]
    sizes = {
        "D": D, "V": V, "VP": max(16, triton.next_power_of_2(V)), "R2": half,
        "RP": max(16, triton.next_power_of_2(half)), "EP": max(16, triton.next_power_of_2(max(D - rotary_dim, 1))),
        "GROUP": H // G, "GP": max(16, triton.next_power_of_2(H // G)), "N": settings[0],
        "CAP": softcap * LOG2_E if softcap else 0.0,
        "Q_ROTATE": longest.q_turn is not None, "K_ROTATE": longest.k_turn is not None, "SECOND": len(sets) > 1,
        "Q_ROTATE2": sets[-1].q_turn is not None, "K_ROTATE2": sets[-1].k_turn is not None,
    }  # fmt: skip
    with on_device_of(q):
        _part[(B * G, parts)](
            q, q_pos, part, part_lse, scale * LOG2_E, G, first, alone, *q.stride()[:2], q_pos.stride(0),
            *part.stride()[:3], *part_lse.stride()[:2], *two, **sizes, num_warps=settings[1], num_stages=settings[2],
        )  # fmt: skip


def _arguments(keys: Keys, q: Tensor, half: int, tiles: int) -> tuple[Any, ...]:
    """One set's tensors, sizes and strides."""
    B, S = len(q), keys.k_BGSD.shape[2]
    k, v = (x if x.stride(-1) == 1 else x.contiguous() for x in (keys.k_BGSD, keys.v_BGSD))
    q_turn, k_turn = keys.q_turn, keys.k_turn
    q_cos, q_sin = (x.expand(B, 1, 2 * half) for x in q_turn) if q_turn is not None else (q[:, :1], q[:, :1])
    k_cos, k_sin = (x.expand(B, S, 2 * half) for x in k_turn) if k_turn is not None else (k[:, 0], k[:, 0])
    at_k = keys.k_pos_BS.expand(B, S)
    strides = *k.stride()[:3], *v.stride()[:3], q_cos.stride(0), *k_cos.stride()[:2], at_k.stride(0)
    return k, v, q_cos, q_sin, k_cos, k_sin, at_k, keys.near, keys.far, S, tiles, *strides
