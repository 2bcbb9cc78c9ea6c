"""A few keys for very many queries, added to a softmax in progress: one pass over the queries and the output."""

# mypy: disable-error-code="no-untyped-def"
# B batch, H query heads, G key/value heads, L queries, S keys (at most 64), D head dim, V that of values
from __future__ import annotations

from typing import Any

import torch
import triton
import triton.language as tl
from torch import Tensor

from .placed import on_device_of
from .triton_cap import capped


@triton.jit
def _few(q, k, v, out, lse, q_pos, k_pos, sink, scale, near, far, heads, length, keys, q_b, q_h, q_l, k_b, k_h, k_s,
         v_b, v_h, v_s, o_b, o_l, o_h, l_b, l_h, qp_b, kp_b,
         D: tl.constexpr, DP: tl.constexpr, V: tl.constexpr, VP: tl.constexpr, SP: tl.constexpr,
         GROUP: tl.constexpr, ROWS: tl.constexpr, CAP: tl.constexpr, SINK: tl.constexpr):  # fmt: skip
    row = tl.program_id(0) * ROWS + tl.arange(0, ROWS)
    batch, head = (tl.program_id(1) // heads).to(tl.int64), tl.program_id(1) % heads
    dim, v_dim, slot = tl.arange(0, DP), tl.arange(0, VP), tl.arange(0, SP)
    wide = row.to(tl.int64)[:, None]
    row_live, slot_live = row < length, slot < keys
    q_BL = tl.load(q + batch * q_b + head * q_h + wide * q_l + dim[None], row_live[:, None] & (dim < D)[None], 0.0)
    k_live, v_live = slot_live[:, None] & (dim < D)[None], slot_live[:, None] & (v_dim < V)[None]
    keys_SD = tl.load(k + batch * k_b + (head // GROUP) * k_h + slot[:, None] * k_s + dim[None], k_live, 0.0)
    values_SD = tl.load(v + batch * v_b + (head // GROUP) * v_h + slot[:, None] * v_s + v_dim[None], v_live, 0.0)
    at_q = tl.load(q_pos + batch * qp_b + row, row_live, -1)
    at_k = tl.load(k_pos + batch * kp_b + slot, slot_live, -1)
    distance = at_q[:, None] - at_k[None]
    seen = (at_q >= 0)[:, None] & (at_k >= 0)[None] & (distance >= near) & (distance < far)
    scores = tl.dot(q_BL, tl.trans(keys_SD))
    scores = scores * scale if CAP == 0.0 else capped(scores, scale, CAP)
    scores = tl.where(seen, scores, float("-inf"))
    at_lse = lse + batch * l_b + head * l_h + row
    old = tl.load(at_lse, row_live, float("-inf"))
    top = tl.maximum(tl.max(scores, 1), old)
    if SINK:
        more = tl.load(sink + head).to(tl.float32)
        top = tl.maximum(top, more)
    base = tl.where(top == float("-inf"), 0.0, top)
    weights, keep = tl.exp(scores - base[:, None]), tl.exp(old - base)
    total = tl.sum(weights, 1) + keep
    if SINK:
        total += tl.exp(more - base)
    norm = tl.where(total == 0.0, 1.0, total)
    at_out = out + batch * o_b + wide * o_l + head * o_h + v_dim[None]
    live = row_live[:, None] & (v_dim < V)[None]
    before = tl.load(at_out, live, 0.0).to(tl.float32)
    added = tl.dot(weights.to(values_SD.dtype), values_SD)
    tl.store(at_out, (before * keep[:, None] + added) / norm[:, None], live)
    tl.store(at_lse, tl.where(total == 0.0, float("-inf"), base + tl.log(norm)), row_live)


def add_few_(
    q_BHLD: Tensor, k_BGSD: Tensor, v_BGSD: Tensor, out_BLHD: Tensor, lse_BHL: Tensor, q_pos_BL: Tensor,
    k_pos_BS: Tensor, scale: float, near: int, far: int, softcap: float | None = None,
    sink_H: Tensor | None = None,
) -> None:  # fmt: skip
    """Merge attention to the keys at distances near <= d < far into `out` and `lse`, in place, and then the sinks."""
    B, H, L, D = q_BHLD.shape
    G, S = k_BGSD.shape[1:3]
    V = v_BGSD.shape[-1]
    k, v = k_BGSD.contiguous(), v_BGSD.contiguous()
    q_pos, k_pos = q_pos_BL.expand(B, L).contiguous(), k_pos_BS.expand(B, S).contiguous()
    rows = 128
    grid: Any = (triton.cdiv(L, rows), B * H)
    strides = (
        *q_BHLD.stride()[:3], *k.stride()[:3], *v.stride()[:3], *out_BLHD.stride()[:3],
        lse_BHL.stride(0), lse_BHL.stride(1), q_pos.stride(0), k_pos.stride(0),
    )  # fmt: skip
    sizes = {
        "D": D,
        "V": V,
        "SP": max(16, triton.next_power_of_2(S)),
        "CAP": softcap or 0.0,
        "SINK": sink_H is not None,
    }
    sizes |= {"DP": max(16, triton.next_power_of_2(D)), "VP": max(16, triton.next_power_of_2(V))}
    far = min(far, torch.iinfo(torch.int64).max)
    sink = lse_BHL if sink_H is None else sink_H.contiguous()  # unread where there is none
    with on_device_of(q_BHLD):
        _few[grid](
            q_BHLD, k, v, out_BLHD, lse_BHL, q_pos, k_pos, sink, scale, near, far, H, L, S, *strides, **sizes,
            GROUP=H // G, ROWS=rows,
        )  # fmt: skip
