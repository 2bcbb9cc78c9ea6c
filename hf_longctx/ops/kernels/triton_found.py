"""Attention of one query a row to its window and to tokens found in pages, in Triton: one softmax, merged once.

Found tokens are one part more of `triton_decode`, read by address. The gate compares their scores with the log-sum-exp
of the window, which the window's parts have left.
"""

# mypy: disable-error-code="no-untyped-def"
# B batch, H query heads, G key/value heads, D head dim, V that of values, T tables, R = H / T, K slots, P parts
from __future__ import annotations

from typing import Any

import torch
import triton
import triton.language as tl
from torch import Tensor

from .. import pages as sizes
from ..found_tokens import FoundTokens
from .placed import on_device_of
from .triton_cap import capped
from .triton_decode import FULL, HALF, LOG2_E, Keys, cut, launch, merge


@triton.jit(do_not_specialize=["at", "windows", "tables", "slots", "heads", "groups", "pages"])
def _found(q, table, k, v, part, part_lse, lowered, at, windows, scale, margin, like, tables, slots, heads, groups,
           pages, q_b, q_h, t_b, t_t, o_p, o_b, o_h, l_p, l_b, w_b, w_h, PAGE: tl.constexpr, D: tl.constexpr,
           DP: tl.constexpr,
           V: tl.constexpr, VP: tl.constexpr, R: tl.constexpr, RP: tl.constexpr, KP: tl.constexpr, PP: tl.constexpr,
           CAP: tl.constexpr, GATED: tl.constexpr, LOWERED: tl.constexpr):  # fmt: skip
    b, one = (tl.program_id(0) // tables).to(tl.int64), tl.program_id(0) % tables
    row, dim, v_dim, column = tl.arange(0, RP), tl.arange(0, DP), tl.arange(0, VP), tl.arange(0, KP)
    head, live = one * R + row, row < R
    g = one * R // (heads // groups)
    slot = tl.load(table + b * t_b + one * t_t + column, column < slots, -1)
    there = slot >= 0
    entry = b * pages + tl.where(there, slot, 0) // PAGE
    inside = (g * PAGE + slot % PAGE)[:, None]
    k_page = tl.multiple_of(tl.load(k + entry, there, 0).to(tl.pointer_type(like.dtype.element_ty)), 16)
    v_page = tl.multiple_of(tl.load(v + entry, there, 0).to(tl.pointer_type(like.dtype.element_ty)), 16)
    keys = tl.load(k_page[:, None] + inside * D + dim[None], there[:, None] & (dim < D)[None], 0.0)
    values = tl.load(v_page[:, None] + inside * V + v_dim[None], there[:, None] & (v_dim < V)[None], 0.0)
    q_RD = tl.load(q + b * q_b + head[:, None] * q_h + dim[None], live[:, None] & (dim < D)[None], 0.0)
    scores = tl.dot(q_RD, tl.trans(keys), input_precision="ieee")
    scores = scores * scale if CAP == 0.0 else capped(scores, scale, CAP, False, q_RD.dtype == tl.float32)
    if GATED:
        every = tl.arange(0, PP)
        from_lse = part_lse + every[None] * l_p + b * l_b + head[:, None]
        window = tl.load(from_lse, (every < windows)[None] & live[:, None], float("-inf"))
        top = tl.max(window, 1)
        base = tl.where(top == float("-inf"), 0.0, top)
        whole = tl.where(
            top == float("-inf"), float("-inf"), base + tl.math.log2(tl.sum(tl.math.exp2(window - base[:, None]), 1))
        )
        near = (scores >= whole[:, None] - margin) & live[:, None]
        there = there & (tl.max(near.to(tl.int32), 0) > 0)
    if LOWERED:
        scores -= (tl.load(lowered + b * w_b + head * w_h, live, 0.0) * 1.4426950408889634)[:, None]
    scores = tl.where(there[None], scores, float("-inf"))
    top = tl.max(scores, 1)
    base = tl.where(top == float("-inf"), 0.0, top)
    weights = tl.math.exp2(scores - base[:, None])
    total = tl.sum(weights, 1)
    norm = tl.where(total == 0.0, 1.0, total)
    acc = tl.dot(weights.to(values.dtype), values, input_precision="ieee") / norm[:, None]
    to = part + at * o_p + b * o_b + head[:, None] * o_h + v_dim[None]
    tl.store(to, acc, live[:, None] & (v_dim < V)[None])
    lse = tl.where(total == 0.0, float("-inf"), base + tl.math.log2(norm))
    tl.store(part_lse + at * l_p + b * l_b + head, lse, live)


def decode(
    q_BHD: Tensor, window: Keys, others: list[Keys], found: FoundTokens, q_pos_B: Tensor, rotary_dim: int,
    scale: float, softcap: float | None = None, sink_H: Tensor | None = None,
) -> tuple[Tensor, Tensor]:  # fmt: skip
    """`triton_decode.decode` over the window, other keys, and found tokens, whose gate is the window's log-sum-exp."""
    B, H, D = q_BHD.shape
    G, V = window.k_BGSD.shape[1], window.v_BGSD.shape[-1]
    settings = FULL if q_BHD.dtype == torch.float32 else HALF
    cuts = [cut(keys.k_BGSD.shape[2], B * G, q_BHD.device, settings) for keys in (window, *others)]
    last, windows = sum(parts for _, parts in cuts), cuts[0][1]
    part = torch.empty(last + 1, B, H, V, device=q_BHD.device, dtype=torch.float32)
    lse = torch.empty(last + 1, B, H, device=q_BHD.device, dtype=torch.float32)
    # the window's parts are its own, as the gate goes by them, and one more set shares their launch
    given = q_pos_B, rotary_dim, scale, softcap, part, lse
    parts = windows + sum(parts for _, parts in cuts[1:2])
    launch(q_BHD, [window, *others[:1]], *given, 0, cuts[0][0], parts, settings, windows if others else 0)
    for keys, (tiles, more) in zip(others[1:], cuts[2:], strict=True):
        launch(q_BHD, [keys], *given, parts, tiles, more, settings)
        parts += more
    table, pages = found.table_BTK, found.pages
    T, K = table.shape[1:]
    q = found.q_BHD if found.q_BHD.stride(-1) == 1 else found.q_BHD.contiguous()
    table = table if table.stride(-1) == 1 else table.contiguous()
    up = triton.next_power_of_2
    shape = {
        "PAGE": sizes.PAGE, "D": D, "DP": max(16, up(D)), "V": V, "VP": max(16, up(V)), "R": H // T,
        "RP": max(16, up(H // T)), "KP": max(16, up(K)), "PP": up(windows),
        "CAP": softcap * LOG2_E if softcap else 0.0, "GATED": found.margin is not None,
        "LOWERED": found.lowered_BH is not None,
    }  # fmt: skip
    lowered = lse[0] if found.lowered_BH is None else found.lowered_BH.expand(B, H)  # strides of 0 where all are alike
    grid: Any = (B * T,)
    with on_device_of(q):
        _found[grid](
            q, table, pages.k, pages.v, part, lse, lowered, last, windows,
            scale * LOG2_E, (found.margin or 0.0) * LOG2_E, q,
            T, K, H, G, pages.k.shape[1], *q.stride()[:2], *table.stride()[:2], *part.stride()[:3], *lse.stride()[:2],
            *lowered.stride(), **shape,
        )  # fmt: skip
    return merge(part, lse, q_BHD.dtype, sink_H)
