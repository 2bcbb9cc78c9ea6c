"""The best tokens of a row by their codes from one pass over these, on cards that multiply bits (see `triton_bits`).

One token of each few that follow each other is scored first, and `_bound` finds a score that so many of this sample
reach that at least `shortlist` tokens of the row do: in a row of millions of tokens fewer do once in 10^10 times, and
about four times as many may. One pass over all codes then names the tokens that reach it, and `_select` keeps the
best of them. `triton_bins` needs no sample, and a second pass over many of the codes.
"""

# mypy: disable-error-code="no-untyped-def"
# B batch, G key/value heads, R query heads of a group, W words of a code, NQ columns of a prepared query
from __future__ import annotations

import math
from typing import Any

import torch
import triton
import triton.language as tl
from torch import Tensor
from triton.experimental import gluon
from triton.experimental.gluon import language as gl

from .. import pages as sizes
from ..pages import Pages
from . import triton_best
from .placed import on_device_of
from .triton_best import _least, _score, _select
from .triton_bits import _codes, _page, _query, _scores, _seen, _sizes, _sum

SAMPLE = tl.constexpr(8192)  # tokens of a row's sample, about, up to 64 pages
LOWEST = tl.constexpr(-(2**62))
CHUNK = 4096  # tokens that reach the bound and are read at once
keys = gluon.jit(triton_best._keys.fn)


@triton.jit
def every(end, PAGE: tl.constexpr):
    """One of so many tokens that follow each other is in the sample: a power of two. 64 of these are in one page."""
    apart = 1
    for i in tl.static_range(20):
        if PAGE >> (i + 7) > 0:
            apart *= 1 + (end > SAMPLE * apart).to(tl.int32)
    return apart


_every = gluon.jit(every.fn)


@gluon.jit
def _chosen(number, apart):
    """Where in its few tokens the sample of this number is: spread, as texts may repeat."""
    return number * apart + (((number * 40503) >> 9) & (apart - 1))


@gluon.jit
def _best(codes, more, held, halves, bases, factors, size_R, SETS: gl.constexpr, HALVES: gl.constexpr):
    """The scores of 64 tokens for four heads, or the best of several fours; nan where a size is nan."""
    top = _scores(codes, more, held, 0, halves, bases, factors, size_R, HALVES)
    for i in gl.static_range(1, SETS):
        top = gl.maximum(top, _scores(codes, more, held, i, halves, bases, factors, size_R, HALVES))
    return top


@gluon.jit(do_not_specialize=["near", "pages", "G", "room"])
def _sampled(q_pos, words, size, pos, filled, ready, after, planes, half, base, factor, score, slot, near, pages, G,
             room, PAGE: gl.constexpr, W: gl.constexpr, WP: gl.constexpr, R: gl.constexpr,
             NQ: gl.constexpr):  # fmt: skip
    """64 tokens of a row's sample: their scores and slots; -inf where one is not looked up."""
    HALVES: gl.constexpr = (W + 3) // 4
    SETS: gl.constexpr = (R + 3) // 4
    LAYOUT: gl.constexpr = gl.BlockedLayout([1, 1], [8, 4], [1, 1], [1, 0])
    ROWS: gl.constexpr = gl.BlockedLayout([2], [32], [1], [0])
    g, number = gl.program_id(0) % G, gl.program_id(0) // G * 64
    b = gl.program_id(1).to(gl.int64)
    end = gl.load(filled + b)
    apart = _every(end, PAGE)
    first = number.to(gl.int64) * apart
    if first >= end:
        return
    at = b * G + g
    row, column = gl.arange(0, 64, gl.SliceLayout(1, LAYOUT)), gl.arange(0, 4, gl.SliceLayout(0, LAYOUT))
    pair = gl.arange(0, 64, ROWS)
    inside, place = _chosen(number + row, apart) - number * apart, _chosen(number + pair, apart) - number * apart
    held, halves, bases, factors = _query(planes, half, base, factor, at, W, WP, R, NQ, LAYOUT)
    low, span = _seen(q_pos, ready, after, b, near)
    words_at, size_at, pos_at = _page(words, size, pos, b, g, pages, first, PAGE, W)
    codes, more = _codes(words_at, 0, inside, column, W, HALVES)
    size_R = _sizes(size_at, pos_at, place, first + place < end, low, span, LAYOUT)
    best = gl.max(_best(codes, more, held, halves, bases, factors, size_R, SETS, HALVES), 1)
    best = gl.convert_layout(best, ROWS)
    to = at * room + number + pair
    gl.store(score + to, gl.where(best == best, best, float("-inf")))
    gl.store(slot + to, (first + place).to(gl.int32))


@triton.jit(do_not_specialize=["per_number", "room"])
def _bound(score, slot, numbers, least, floor, found, per_number, room, KEPT: tl.constexpr, PAGE: tl.constexpr,
           CHUNK: tl.constexpr, GROUPS: tl.constexpr):  # fmt: skip
    """The key, and its score, that `KEPT` tokens of a row reach, and some more, by its sample.

    Of the best KEPT so many as follow a Poisson distribution are in the sample: six deviations and more are added.
    """
    row = tl.program_id(0).to(tl.int64)
    end = tl.load(numbers + row // per_number)
    apart = every(end, PAGE)
    number = tl.cdiv(end, apart).to(tl.int32)
    mean = KEPT / apart.to(tl.float32)
    rank = (mean + 6.0 * tl.sqrt(mean)).to(tl.int32) + 9
    score += row * room
    slot += row * room
    key, reach = _least(score, slot, number, rank + rank // 4, rank, CHUNK, True, GROUPS)
    enough = reach >= rank
    tl.store(least + row, tl.where(enough, key, LOWEST))
    tl.store(floor + row, tl.where(enough, _score(key), float("-inf")))
    tl.store(found + row, 0)


@gluon.jit(do_not_specialize=["near", "pages", "G", "room"])
def _passed(q_pos, words, size, pos, filled, ready, after, planes, half, base, factor, least, floor, found, score,
            slot, near, pages, G, room, PAGE: gl.constexpr, W: gl.constexpr, WP: gl.constexpr, R: gl.constexpr,
            NQ: gl.constexpr, TILES: gl.constexpr):  # fmt: skip
    """The tokens of some blocks of 64 slots that reach the bound, added to the row's."""
    HALVES: gl.constexpr = (W + 3) // 4
    SETS: gl.constexpr = (R + 3) // 4
    LAYOUT: gl.constexpr = gl.BlockedLayout([1, 1], [8, 4], [1, 1], [1, 0])
    ROWS: gl.constexpr = gl.BlockedLayout([2], [32], [1], [0])
    g, first = gl.program_id(0) % G, gl.program_id(0) // G * (TILES * 64)
    b = gl.program_id(1).to(gl.int64)
    end = gl.load(filled + b)
    if first >= end:
        return
    at = b * G + g
    row, column = gl.arange(0, 64, gl.SliceLayout(1, LAYOUT)), gl.arange(0, 4, gl.SliceLayout(0, LAYOUT))
    pair = gl.arange(0, 64, ROWS)
    held, halves, bases, factors = _query(planes, half, base, factor, at, W, WP, R, NQ, LAYOUT)
    low, span = _seen(q_pos, ready, after, b, near)
    words_at, size_at, pos_at = _page(words, size, pos, b, g, pages, first, PAGE, W)
    room_here = gl.minimum(end - first, TILES * 64).to(gl.int32)
    bound, key = gl.load(floor + at), gl.load(least + at)
    for tile in range(0, gl.cdiv(room_here, 64)):
        # what lies behind the last slot is read, as a page is whole, and not seen
        codes, more = _codes(words_at, tile * 64, row, column, W, HALVES)
        inside = tile * 64 + pair
        size_R = _sizes(size_at, pos_at, inside, inside < room_here, low, span, LAYOUT)
        top = _best(codes, more, held, halves, bases, factors, size_R, SETS, HALVES)
        if gl.max(gl.max(top, 0), 0) >= bound:  # in most tiles none does
            best = gl.convert_layout(gl.max(top, 1), ROWS)
            place = first + inside
            take = (best >= bound) & (keys(best, place) >= key)
            taken = take.to(gl.int32)
            before = gl.atomic_add(found + at, gl.sum(taken, 0), sem="relaxed")
            to = before + gl.associative_scan(taken, 0, _sum) - 1
            take = take & (to < room)
            gl.store(score + at * room + to, best, take)
            gl.store(slot + at * room + to, place.to(gl.int32), take)


def passed(
    ready: tuple[Tensor, ...], at: tuple[Any, ...], pages: Pages, shapes: Any, near: int, shortlist: int
) -> tuple[Tensor, Tensor]:
    """The best `shortlist` tokens of each group by their codes, as `triton_lookup.survivors` gives them.

    `at` is where codes lie and which of them a query looks up: the first arguments of the kernels that score them.
    """
    B, G, rows, device = shapes.B, shapes.G, shapes.B * shapes.G, pages.filled_B.device
    slots = shapes.pages * sizes.PAGE
    sample = max(SAMPLE.value, shapes.pages * 64)
    room = min(slots, 1024 * triton.cdiv(4 * _most(shortlist), 1024))
    scores = torch.empty(rows * max(sample, room), device=device, dtype=torch.float32)
    names = torch.empty_like(scores, dtype=torch.int32)
    least, floor = (torch.empty(rows, device=device, dtype=dtype) for dtype in (torch.int64, torch.float32))
    count, number = torch.empty(2, rows, device=device, dtype=torch.int32)
    kept_slot = torch.empty(rows, shortlist, device=device, dtype=torch.int32)
    kept_score = torch.empty(rows, shortlist, device=device, dtype=torch.float32)
    groups = triton.next_power_of_2(shortlist)
    kept: Any = shapes.bits | {"PAGE": sizes.PAGE}
    with on_device_of(pages.filled_B):
        _sampled[sample // 64 * G, B](*at, *ready, scores, names, near, shapes.pages, G, sample, **kept, num_warps=1)
        _bound[(rows,)](
            scores, names, pages.filled_B, least, floor, count, G, sample, KEPT=shortlist, PAGE=sizes.PAGE,
            CHUNK=SAMPLE.value, GROUPS=64, num_warps=8,
        )  # fmt: skip
        # the sample has been read: its memory is that of the tokens that pass
        _passed[shapes.blocks // shapes.tiles * G, B](
            *at, *ready, least, floor, count, scores, names, near, shapes.pages, G, room, **kept, TILES=shapes.tiles,
            num_warps=1,
        )  # fmt: skip
        _select[(rows,)](
            scores, names, count, kept_slot, kept_score, number, floor, count, 1, room, shortlist, KEPT=shortlist,
            CHUNK=CHUNK, GROUPS=groups if groups <= CHUNK else 0, NAMED=True, num_warps=8,
        )  # fmt: skip
    return number, kept_slot


def _most(shortlist: int) -> int:
    """Tokens that reach the bound where the sample is thinnest: what is expected."""
    thin = sizes.PAGE // 64
    return math.ceil(1.25 * (shortlist + 6 * (shortlist * thin) ** 0.5 + 9 * thin))
