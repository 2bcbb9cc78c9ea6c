"""Looking tokens up for some queries at a time, in Triton, over pages found by address.

Queries are prepared, every block of slots leaves its best score by the codes, the blocks with the best tokens are
selected and scored again, the best tokens' real keys are scored, and the best of these are the table. Sizes
follow from the number of pages that there may be, and what there is from counters on the device, so that a CUDA graph
records them once; the host is never waited for.
"""

# B batch, H query heads, G key/value heads, L queries, D head dim, C channels, T tables, K slots of a table
from __future__ import annotations

import functools
from collections.abc import Iterator
from typing import Any, NamedTuple

import torch
import triton
from torch import Tensor

from .. import pages as sizes
from ..codes import QUERY_BITS, channels, levels, step_share, turned
from ..pages import Pages
from .placed import on_device_of
from .triton_best import _survivors
from .triton_bins import PART, _bins, _listed
from .triton_codes import TILES, _maxima, _prepare
from .triton_range import STATE
from .triton_shortlist import TOKENS, _last, _shortlist
from .triton_tokens import CHUNK, FEW, _tokens

BLOCK = 64  # slots
PROGRAMS = 8192  # of `triton_bits`, about: several for each place on a card
# numbers that are made at once, as many as `attention.lookup` makes: best scores of blocks, and tokens that may reach
# the bounds. Of a million tokens 256 queries of three tables come in two parts, each of which launches ten kernels
AT_ONCE = 2**26


class Shapes:
    """How the heads and queries of a call are laid out in kernels.

    Args:
        q_BHLD: The queries.
        pages: Where they look.
        per: "group" or "head".
        by_bits: Codes are multiplied bit by bit, see `triton_bits`: by `survivors`, and for one query by `maxima`.
        asked_T: 1 for the tables that anyone reads, int32, and 0 for those that are to be empty; None: all are read.
    """

    def __init__(
        self, q_BHLD: Tensor, pages: Pages, per: str, by_bits: bool = False, asked_T: Tensor | None = None
    ) -> None:
        self.B, self.H, self.L, self.D = q_BHLD.shape
        self.G, self.C = pages.width_BGC.shape[1:]
        self.heads, self.by_bits = per == "head", by_bits
        self.T = self.H if self.heads else self.G
        self.pages = pages.words.shape[1]
        self.blocks = self.pages * sizes.PAGE // BLOCK
        R, W = self.H // self.G, self.C // 32
        RP, WP = triton.next_power_of_2(R), triton.next_power_of_2(W)
        columns = max(8, RP * min(triton.next_power_of_2(self.L), max(1, 32 // RP)))
        if by_bits:  # the heads of one query
            RP = columns = max(8, RP)
        self.pieces = triton.cdiv(self.L, columns // RP)
        rows = BLOCK // max(1, 32 // (4 * W)) if WP == W else BLOCK  # 32 bytes stand in a row
        self.codes = {
            "W": W, "WP": WP, "R": R, "RP": RP, "NQ": columns, "K": max(16, 4 * WP), "BYTES": max(32, 4 * WP),
            "ROWS": rows,
        }  # fmt: skip
        self.asked = (q_BHLD, False) if asked_T is None else (asked_T, True)
        self.bits = {name: self.codes[name] for name in ("W", "WP", "R", "NQ")}


class Moved(NamedTuple):
    """How queries are moved before they look tokens up: by the model's rotation of halves.

    Attributes:
        cos: Of the dims that are rotated, (R,), with equal halves.
        sin: The same.
        out_BHLD: Where the moved queries are left, contiguous rows.
    """

    cos: Tensor
    sin: Tensor
    out_BHLD: Tensor


def in_turn(queries: int, room: int) -> Iterator[slice]:
    """Queries in parts of about one size, as large as `AT_ONCE` allows where each makes `room` numbers."""
    parts = triton.cdiv(queries, max(1, min(queries, AT_ONCE // room)))
    size = triton.cdiv(queries, parts)
    for start in range(0, queries, size):
        yield slice(start, start + size)


@functools.lru_cache(maxsize=32)
def _turn(dim: int, device: torch.device) -> Tensor:
    """The fixed turn of keys as a matrix, once for each bit of a channel, (D, C) fp32."""
    return turned(torch.eye(dim, device=device)).repeat(1, levels(dim))


def prepared(q_BHLD: Tensor, pages: Pages, shapes: Shapes, moved: Moved | None = None) -> tuple[Tensor, ...]:
    """Queries as `_maxima` and `_survivors` read them: operand, half, base and factor; and zeros for `maxima`."""
    codes, rows, device = shapes.codes, shapes.B * shapes.G * shapes.pieces, q_BHLD.device
    if shapes.by_bits:
        words = codes["NQ"] // 4 * triton.cdiv(codes["WP"], 4) * QUERY_BITS * 16
        operand = torch.empty(rows, words, device=device, dtype=torch.int32)
    else:
        operand = torch.empty(rows, codes["NQ"] * 32 * codes["WP"], device=device, dtype=torch.float16)
    half = torch.empty(rows, codes["WP"], codes["NQ"], device=device, dtype=torch.float32)
    base = torch.empty(rows, codes["NQ"], device=device, dtype=torch.float32)
    factor = torch.empty_like(base)
    state = torch.empty(shapes.B * shapes.T * shapes.L, STATE.value, device=device, dtype=torch.int32)
    grid: Any = (shapes.B * shapes.G, shapes.pieces, codes["WP"])
    kept = {name: codes[name] for name in ("WP", "R", "RP", "NQ", "K")}
    cos, sin, out = (base, base, q_BHLD) if moved is None else moved
    with on_device_of(q_BHLD):
        _prepare[grid](
            q_BHLD, _turn(shapes.D, device), pages.mean_BGD, pages.width_BGC, operand, half, base, factor, state,
            cos, sin, out, *q_BHLD.stride()[:3], *out.stride()[:3], shapes.G, shapes.L, state.numel(), D=shapes.D,
            R2=0 if moved is None else len(cos) // 2,
            DIMS=min(max(16, triton.next_power_of_2(shapes.D)), 64), C=shapes.C, **kept,
            QUERY=QUERY_BITS, STEP=step_share(channels(shapes.D)), BY_BITS=shapes.by_bits,
        )  # fmt: skip
    return operand, half, base, factor, state


def _places(q_pos_BL: Tensor, pages: Pages, after_B: Tensor) -> tuple[Tensor, ...]:
    """Where codes lie, and which of them a query looks up: the first arguments of the kernels that score them."""
    return q_pos_BL, pages.words, pages.size, pages.pos, pages.filled_B, pages.ready_B, after_B


def maxima(
    ready: tuple[Tensor, ...], q_pos_BL: Tensor, pages: Pages, shapes: Shapes, near: int, after_B: Tensor
) -> tuple[Tensor, Tensor]:
    """The best score of each block of 64 slots by the codes, (B, T, L, blocks); -inf: it has no candidate.

    Of blocks behind the last token it is undefined. And what is known of each row's range, for `survivors`.
    """
    B, G, L, T = shapes.B, shapes.G, shapes.L, shapes.T
    best = torch.empty(B, T, L, shapes.blocks, device=q_pos_BL.device, dtype=torch.float32)
    *operands, state = ready
    at = *_places(q_pos_BL, pages, after_B), *operands
    asked, some = shapes.asked
    some = some and not shapes.heads  # a program serves all heads of a group
    with on_device_of(q_pos_BL):
        if shapes.by_bits:
            from . import triton_bits

            tiles = min(64, max(4, triton.next_power_of_2(B * G * shapes.blocks // PROGRAMS)))
            triton_bits._maxima[shapes.blocks // tiles * G, B](
                *at, best, state, asked, near, shapes.pages, G, T, shapes.blocks, PAGE=sizes.PAGE,
                **shapes.bits, TILES=tiles, HEADS=shapes.heads, ASKED=some, num_warps=1,
            )  # fmt: skip
            return best, state
        _maxima[shapes.blocks // TILES.value * G, B, shapes.pieces](
            *at, best, state, asked, near, shapes.pages, G, L, T, shapes.blocks, PAGE=sizes.PAGE,
            **shapes.codes, HEADS=shapes.heads, ASKED=some, num_warps=1, num_stages=2,
        )  # fmt: skip
    return best, state


def survivors(
    ready: tuple[Tensor, ...], scored: tuple[Tensor, Tensor], q_pos_BL: Tensor, pages: Pages, shapes: Shapes,
    near: int, after_B: Tensor, shortlist: int,
) -> tuple[Tensor, Tensor]:  # fmt: skip
    """The best `shortlist` tokens of each table by their codes, from what `maxima` gave.

    Returns how many there are, (rows), and their slots (rows, shortlist), in any order; a row is a table of a query.
    """
    best, state = scored
    rows, device, blocks = shapes.B * shapes.T * shapes.L, best.device, shapes.blocks
    most = min(shortlist + max(BLOCK, shortlist // 8), blocks)
    block, slot = (torch.empty(rows, n, device=device, dtype=torch.int32) for n in (most, most * BLOCK))
    score = torch.empty(rows, most * BLOCK, device=device, dtype=torch.float32)
    count, found, number = torch.empty(3, rows, device=device, dtype=torch.int32)
    floor, least = (torch.empty(rows, device=device, dtype=dtype) for dtype in (torch.float32, torch.int64))
    kept_slot = torch.empty(rows, shortlist, device=device, dtype=torch.int32)
    tally = torch.empty(rows, STATE.value, device=device, dtype=torch.int32)
    few = torch.empty(rows, FEW.value, device=device, dtype=torch.int64)
    asked, some = shapes.asked
    sizes_of = shapes.T, shapes.L, blocks, most
    parts: Any = (triton.cdiv(blocks, PART.value), rows)
    at = *_places(q_pos_BL, pages, after_B), *ready[:-1]
    rest = block, count, floor, found, score, slot, tally, near, shapes.pages, shapes.G
    chunk = min(CHUNK, triton.next_power_of_2(most * BLOCK))
    with on_device_of(best):
        _bins[parts](
            best, pages.filled_B, asked, state, tally, least, floor, count, found, *sizes_of, KEPT=shortlist,
            CHUNK=min(8192, triton.next_power_of_2(blocks)), ASKED=some, num_warps=8,
        )  # fmt: skip
        _listed[parts](best, pages.filled_B, asked, state, least, block, count, *sizes_of, ASKED=some)
        if shapes.by_bits:
            from . import triton_bits

            triton_bits._survivors[triton.cdiv(most, 2), rows](
                *at, *rest, shapes.L, most, PAGE=sizes.PAGE, **shapes.bits, HEADS=shapes.heads, ONE=shapes.L == 1,
                num_warps=1,
            )  # fmt: skip
        else:
            columns = 8 if shapes.heads else max(8, shapes.codes["RP"])
            _survivors[most, rows](
                *at, *rest, shapes.L, most, PAGE=sizes.PAGE, **shapes.codes, NC=columns,
                HEADS=shapes.heads, num_warps=1,
            )  # fmt: skip
        _tokens[triton.cdiv(most * BLOCK, chunk), rows](
            score, slot, found, tally, kept_slot, number, few, most * BLOCK,
            blocks * BLOCK, KEPT=shortlist, CHUNK=chunk, num_warps=8,
        )  # fmt: skip
    return number, kept_slot


def last(q_BHLD: Tensor, found: Tensor, slot: Tensor, pages: Pages, shapes: Shapes, k: int, shortlist: int) -> Tensor:
    """Of the best `shortlist` by their codes the best `k` by their real keys, (B, T, L, k)."""
    rows, device = len(found), q_BHLD.device
    real = torch.empty(rows, shortlist, device=device, dtype=torch.float32)
    table = torch.empty(shapes.B, shapes.T, shapes.L, k, device=device, dtype=torch.int64)
    R = shapes.codes["R"]
    columns = 8 if shapes.heads else max(8, shapes.codes["RP"])
    each: Any = (triton.cdiv(shortlist, TOKENS.value), rows)
    with on_device_of(q_BHLD):
        _shortlist[each](
            q_BHLD, pages.k, found, slot, real, q_BHLD, *q_BHLD.stride()[:3], shapes.pages, shapes.G, shapes.L,
            shortlist, PAGE=sizes.PAGE, D=shapes.D, DP=max(16, triton.next_power_of_2(shapes.D)), R=R, NC=columns,
            HEADS=shapes.heads,
        )  # fmt: skip
        _last[each](found, real, slot, table, k, shortlist, LEFT=triton.next_power_of_2(k), num_warps=8)
    return table


def shortlisted(
    q_BHLD: Tensor, q_pos_BL: Tensor, pages: Pages, *, near: int, after_B: Tensor, per: str, shortlist: int,
    by_bits: bool = False, moved: Moved | None = None, asked_T: Tensor | None = None,
) -> tuple[Tensor, tuple[Tensor, Tensor], Shapes]:  # fmt: skip
    """For some queries, as in `choose`, the best score of each block, the best `shortlist` tokens, and the shapes.

    Several queries are scored by operands of all of them at once, each of which serves many blocks. The blocks that are
    left are of each query its own, and a code takes a third of the instructions where it is not unpacked for them.
    """
    shapes = Shapes(q_BHLD, pages, per, by_bits and q_BHLD.shape[2] == 1, asked_T)
    ready = prepared(q_BHLD, pages, shapes, moved)
    best = maxima(ready, q_pos_BL, pages, shapes, near, after_B)
    if by_bits and not shapes.by_bits:
        shapes = Shapes(q_BHLD, pages, per, True, asked_T)
        ready = prepared(q_BHLD if moved is None else moved.out_BHLD, pages, shapes)
    return best[0], survivors(ready, best, q_pos_BL, pages, shapes, near, after_B, shortlist), shapes


@torch.no_grad()
def choose(
    q_BHLD: Tensor, q_pos_BL: Tensor, pages: Pages, *, k: int, near: int, after_B: Tensor, per: str, shortlist: int,
    by_bits: bool = False, moved: Moved | None = None, asked_T: Tensor | None = None,
) -> Tensor:  # fmt: skip
    """For each query the slots of its best `k` tokens, (B, T, L, K) int64; -1 where there are fewer.

    The same as `attention.lookup.choose` with by="signs", to the rounding of sums.

    Args:
        q_BHLD: Queries in the dtype of the keys, moved to where they read keys that are left as they are.
        q_pos_BL: Their positions, int64; -1 for padding.
        pages: Where to look.
        k: How many.
        near: Tokens nearer than this are not looked up.
        after_B: Nor are those up to this position of a row, int64.
        per: "head": a table for each query head. "group": one for the heads of a group.
        shortlist: How many of the best by their codes are scored with their real keys.
        by_bits: Multiply codes bit by bit where that is faster, see `bits`.
        moved: Queries are yet to be moved so; None: they are already.
        asked_T: As in `Shapes`. Codes of a group of heads that nobody asks are not read.
    """
    B, _, L, _ = q_BHLD.shape
    q = q_BHLD if q_BHLD.stride(-1) == 1 else q_BHLD.contiguous()
    q_pos = q_pos_BL.expand(B, L).contiguous()
    whole = Shapes(q, pages, per, by_bits, asked_T)
    room = min(shortlist + max(BLOCK, shortlist // 8), whole.blocks) * BLOCK + whole.blocks
    tables = []
    for at in in_turn(L, B * whole.T * room):
        some, pos = q[:, :, at], q_pos[:, at].contiguous()
        part = None if moved is None else moved._replace(out_BHLD=moved.out_BHLD[:, :, at])
        _, found, shapes = shortlisted(
            some, pos, pages, near=near, after_B=after_B, per=per, shortlist=shortlist, by_bits=by_bits, moved=part,
            asked_T=asked_T,
        )  # fmt: skip
        tables.append(last(some if part is None else part.out_BHLD, *found, pages, shapes, k, shortlist))
    return tables[0] if len(tables) == 1 else torch.cat(tables, 2)
