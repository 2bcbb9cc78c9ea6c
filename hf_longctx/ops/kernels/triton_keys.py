"""Looking tokens up by their keys for some queries at a time, in Triton, over pages found by address.

As by codes (`triton_lookup`), but every score is exact: every block of slots leaves its best score, the blocks with the
best of them are selected and scored again, and the best tokens of these are the table. Sizes follow from the number of
pages that there may be, so that a CUDA graph records them once.
"""

# mypy: disable-error-code="no-untyped-def"
# B batch, H query heads, G key/value heads, R = H / G, L queries, D head dim, T tables, K slots of a table, NQ and NC
# columns: queries that are scored at once
from __future__ import annotations

from typing import Any

import torch
import triton
import triton.language as tl
from torch import Tensor

from .. import pages as sizes
from ..pages import Pages
from .placed import on_device_of
from .triton_best import _select
from .triton_lookup import BLOCK, in_turn
from .triton_shortlist import _last

TILES = tl.constexpr(16)  # blocks of 64 slots of a program; a page holds a multiple of them


@triton.jit(do_not_specialize=["near", "pages", "G", "L", "T", "blocks"])
def _key_maxima(q, q_pos, k, pos, filled, after, best, q_b, q_h, q_l, near, pages, G, L, T, blocks,
                PAGE: tl.constexpr, D: tl.constexpr, DP: tl.constexpr, R: tl.constexpr, RP: tl.constexpr,
                NQ: tl.constexpr, HEADS: tl.constexpr):  # fmt: skip
    """Some blocks of one row's group of heads: the best score of each."""
    g, first = tl.program_id(0) % G, tl.program_id(0) // G * (TILES * 64)
    b, piece = tl.program_id(1).to(tl.int64), tl.program_id(2)
    end = tl.load(filled + b)
    if first >= end:
        return
    column, dim, token = tl.arange(0, NQ), tl.arange(0, DP), tl.arange(0, 64)
    r, l = column % RP, piece * (NQ // RP) + column // RP
    live = (r < R) & (l < L)
    from_q = q + b * q_b + (g * R + r)[:, None] * q_h + l[:, None] * q_l + dim[None]
    q_ND = tl.load(from_q, live[:, None] & (dim < D)[None], 0.0)
    earliest, latest_N = tl.maximum(tl.load(after + b), -1), tl.load(q_pos + b * L + l, live, -1) - near
    page = b * pages + first // PAGE
    inside = tl.multiple_of(first % PAGE, 64)
    k_page = tl.multiple_of(tl.load(k + page).to(tl.pointer_type(q.dtype.element_ty)), 16)
    key_at = k_page + (g * PAGE + inside) * D
    pos_at = tl.multiple_of(tl.load(pos + page).to(tl.pointer_type(tl.int64)), 16) + inside
    for tile in range(tl.minimum(TILES, tl.cdiv(end - first, 64)).to(tl.int32)):
        slot = tile * 64 + token
        pos_S = tl.load(pos_at + slot, first + slot < end, -1)
        key_SD = tl.load(key_at + slot[:, None] * D + dim[None], (first + slot < end)[:, None] & (dim < D)[None], 0.0)
        scores = tl.dot(key_SD, tl.trans(q_ND), input_precision="ieee")
        seen = (pos_S > earliest)[:, None] & (pos_S[:, None] <= latest_N[None])
        top_N = tl.max(tl.where(seen & live[None], scores, float("-inf")), 0)
        block = first // 64 + tile
        if HEADS:
            tl.store(best + ((b * T + g * R + r) * L + l) * blocks + block, top_N, live)
        else:
            query = tl.arange(0, NQ // RP)
            top = tl.max(tl.reshape(top_N, (NQ // RP, RP)), 1)
            to = piece * (NQ // RP) + query
            tl.store(best + ((b * T + g) * L + to) * blocks + block, top, to < L)


@triton.jit(do_not_specialize=["near", "pages", "G", "L", "most"])
def _key_tokens(q, q_pos, k, pos, filled, after, block, count, found, score, slot, q_b, q_h, q_l, near, pages, G, L,
                most, PAGE: tl.constexpr, D: tl.constexpr, DP: tl.constexpr, R: tl.constexpr, NC: tl.constexpr,
                HEADS: tl.constexpr):  # fmt: skip
    """The candidates of one of these blocks and their scores, added to the row's."""
    row = tl.program_id(1).to(tl.int64)
    if tl.program_id(0) >= tl.load(count + row):
        return
    T = G * R if HEADS else G
    b, table, l = row // (T * L), row // L % T, row % L
    g = table // R if HEADS else table
    column, dim, token = tl.arange(0, NC), tl.arange(0, DP), tl.arange(0, 64)
    live = column < (1 if HEADS else R)
    head = table if HEADS else g * R + column
    from_q = q + b * q_b + (head + column * 0)[:, None] * q_h + l * q_l + dim[None]
    q_CD = tl.load(from_q, live[:, None] & (dim < D)[None], 0.0)
    first, end = tl.load(block + row * most + tl.program_id(0)) * 64, tl.load(filled + b)
    page, each = b * pages + first // PAGE, tl.multiple_of(first % PAGE, 64) + token
    there = first + token < end
    k_page = tl.multiple_of(tl.load(k + page).to(tl.pointer_type(q.dtype.element_ty)), 16)
    key_at = k_page + (g * PAGE + each) * D
    pos_at = tl.multiple_of(tl.load(pos + page).to(tl.pointer_type(tl.int64)), 16)
    pos_S = tl.load(pos_at + each, there, -1)
    key_SD = tl.load(key_at[:, None] + dim[None], there[:, None] & (dim < D)[None], 0.0)
    scores = tl.dot(key_SD, tl.trans(q_CD), input_precision="ieee")
    take = (pos_S > tl.maximum(tl.load(after + b), -1)) & (pos_S <= tl.load(q_pos + b * L + l) - near)
    taken = take.to(tl.int32)
    to = row * (most * 64) + tl.atomic_add(found + row, tl.sum(taken, 0)) + tl.cumsum(taken, 0) - 1
    tl.store(score + to, tl.max(tl.where(live[None], scores, float("-inf")), 1), take)
    tl.store(slot + to, first + token, take)


@torch.no_grad()
def choose(
    q_BHLD: Tensor, q_pos_BL: Tensor, pages: Pages, *, k: int, near: int, after_B: Tensor, per: str
) -> Tensor:  # fmt: skip
    """For each query the slots of its best `k` tokens, (B, T, L, K) int64; -1 where there are fewer.

    The same as `attention.lookup.choose` with by="keys", to the rounding of sums. The arguments are those of
    `triton_lookup.choose`.
    """
    (B, H, L, _), G = q_BHLD.shape, pages.mean_BGD.shape[1]
    q = q_BHLD if q_BHLD.stride(-1) == 1 else q_BHLD.contiguous()
    q_pos, T = q_pos_BL.expand(B, L).contiguous(), H if per == "head" else G
    blocks = pages.k.shape[1] * sizes.PAGE // BLOCK
    most = min(k + max(BLOCK, k // 8), blocks)
    tables = []
    for at in in_turn(L, B * T * (most * BLOCK + blocks)):
        some, pos = q[:, :, at], q_pos[:, at].contiguous()
        tables.append(_choose(some, pos, pages, k, near, after_B, T, blocks, most))
    return tables[0] if len(tables) == 1 else torch.cat(tables, 2)


def _choose(
    q: Tensor, q_pos: Tensor, pages: Pages, k: int, near: int, after_B: Tensor, T: int, blocks: int, most: int
) -> Tensor:
    (B, H, L, D), G, device = q.shape, pages.mean_BGD.shape[1], q.device
    rows, R, RP, entries = B * T * L, H // G, triton.next_power_of_2(H // G), pages.k.shape[1]
    NQ = max(8, RP * min(triton.next_power_of_2(L), max(1, 32 // RP)))
    best = torch.empty(B, T, L, blocks, device=device, dtype=torch.float32)
    block, slot = (torch.empty(rows, n, device=device, dtype=torch.int32) for n in (most, most * BLOCK))
    block_score, score = (torch.empty(rows, n, device=device, dtype=torch.float32) for n in (most, most * BLOCK))
    count, found, number = torch.empty(3, rows, device=device, dtype=torch.int32)
    floor = torch.empty(rows, device=device, dtype=torch.float32)  # of no use here: all of a block are scored again
    kept_slot = torch.empty(rows, 2 * k, device=device, dtype=torch.int32)
    kept_score = torch.empty(rows, 2 * k, device=device, dtype=torch.float32)
    table = torch.empty(B, T, L, k, device=device, dtype=torch.int64)
    shape: Any = {"PAGE": sizes.PAGE, "D": D, "DP": max(16, triton.next_power_of_2(D)), "R": R, "HEADS": T == H}
    given = q_pos, pages.k, pages.pos, pages.filled_B, after_B
    every: Any = (triton.cdiv(blocks, TILES.value) * G, B, triton.cdiv(L, NQ // RP))
    each: Any = (most, rows)
    ranked: Any = (triton.cdiv(2 * k, 64), rows)
    with on_device_of(q):
        _key_maxima[every](
            q, *given, best, *q.stride()[:3], near, entries, G, L, T, blocks, RP=RP, NQ=NQ, **shape,
            num_stages=2,  # more would take twice the shared memory, and leave room for half as many programs
        )  # fmt: skip
        _select[(rows,)](
            best, block, pages.filled_B, block, block_score, count, floor, found, T * L, blocks, most, KEPT=k,
            **_chunks(min(4096, triton.next_power_of_2(blocks)), k), NAMED=False, num_warps=8,
        )  # fmt: skip
        _key_tokens[each](
            q, *given, block, count, found, score, slot, *q.stride()[:3], near, entries, G, L, most,
            NC=8 if T == H else max(8, RP), **shape,
        )  # fmt: skip
        _select[(rows,)](
            score, slot, found, kept_slot, kept_score, number, floor, found, 1, most * BLOCK, 2 * k, KEPT=k,
            **_chunks(2048, k), NAMED=True, num_warps=8,
        )  # fmt: skip
        _last[ranked](number, kept_score, kept_slot, table, k, 2 * k, LEFT=triton.next_power_of_2(k))
    return table


def _chunks(size: int, k: int) -> dict[str, int]:
    """How many scores `_select` reads at once, and in how many groups it looks for the best of each."""
    groups = triton.next_power_of_2(k)
    return {"CHUNK": size, "GROUPS": groups if groups <= size else 0}
