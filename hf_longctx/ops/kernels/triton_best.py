"""The tokens with the best scores by their codes, in Triton: from the best of each block, exactly, in two steps.

The k blocks with the best maxima hold the k best tokens, ties by the lower slot. `_select` finds a bound that at least
k blocks reach: it counts them in 31 bins of equal width between two bounds and continues in one of the bins, until not
many more than k are above. `_survivors` scores these blocks again and keeps the tokens that reach the bound, of which
`_select` once more keeps k. The order in which programs find tokens has no influence: no two have the same key.
"""

# mypy: disable-error-code="no-untyped-def"
# B batch, T tables, L queries, W words of a code, NQ columns, K the k of "k best"
from __future__ import annotations

import triton
import triton.language as tl

from .triton_codes import laid_out, operands, scored

NOTHING = tl.constexpr(-(2**31))  # the key of what is no candidate
LEAST = tl.constexpr(-(2**31) + 2**23)  # no candidate's key is below it


@triton.jit
def _keys(scores, start, number, CHUNK: tl.constexpr):
    """Scores of a part of a row as int32 that are ordered as they are; `NOTHING` for -inf and behind the end."""
    at = start + tl.arange(0, CHUNK)
    score = tl.load(scores + at, at < number, float("-inf"))
    bits = score.to(tl.int32, bitcast=True)
    return tl.where(score > float("-inf"), bits ^ ((bits >> 31) & 0x7FFFFFFF), NOTHING)


@triton.jit
def _reaching(key_N, bound, scores, number, CHUNK: tl.constexpr):
    """How many keys of a row are `bound` or more; `key_N` are the first of them."""
    reach_N = (key_N >= bound).to(tl.int32)
    for start in range(CHUNK, number, CHUNK):
        reach_N += (_keys(scores, start, number, CHUNK) >= bound).to(tl.int32)
    return tl.sum(reach_N, 0)


@triton.jit
def _names(names, start, number, CHUNK: tl.constexpr, NAMED: tl.constexpr):
    """The names of a part of a row."""
    at = start + tl.arange(0, CHUNK)
    return tl.load(names + at, at < number, 0) if NAMED else at


@triton.jit
def _last_name(bound, scores, names, number, room, CHUNK: tl.constexpr, NAMED: tl.constexpr):
    """Up to which name there are `room` keys that equal a bound."""
    low, high = tl.full((), -1, tl.int64), tl.full((), 2147483647, tl.int64)
    while high - low > 1:
        middle, there = low + (high - low) // 2, 0
        for start in range(0, number, CHUNK):
            equal = _keys(scores, start, number, CHUNK) == bound
            there += tl.sum((equal & (_names(names, start, number, CHUNK, NAMED) <= middle)).to(tl.int32), 0)
        low, high = tl.where(there <= room, middle, low), tl.where(there <= room, high, middle)
    return low


@triton.jit(do_not_specialize=["per_number", "most"])
def _select(scores, names, numbers, kept, kept_score, count, floor, found, per_number, room, most, KEPT: tl.constexpr,
            CHUNK: tl.constexpr, NAMED: tl.constexpr, GROUPS: tl.constexpr = 0):  # fmt: skip
    """Of one row the best `KEPT` and a few more, at most `most`, in the order that they have, and a bound of them.

    GROUPS is a power of two from KEPT to CHUNK, or 0.
    """
    row = tl.program_id(0).to(tl.int64)
    scores += row * room
    names += row * room
    # of blocks, or of what `_survivors` has found
    number = tl.load(numbers + row // per_number)
    number = (number if NAMED else tl.cdiv(number, 64)).to(tl.int32)
    key_N = _keys(scores, 0, number, CHUNK)  # stay in registers, as most rows have no more
    best_N = key_N
    for start in range(CHUNK, number, CHUNK):
        best_N = tl.maximum(best_N, _keys(scores, start, number, CHUNK))
    least = tl.full((), LEAST, tl.int32)
    end = tl.maximum(tl.max(best_N, 0), LEAST).to(tl.int64) + 1
    reach = _reaching(key_N, least, scores, number, CHUNK)
    if GROUPS > 0:  # noqa: SIM102  # this is known when it is compiled
        if reach > most:
            # of so many groups, KEPT or more, each has one that is no less than the least of the groups' best
            bests = tl.max(tl.reshape(best_N, (GROUPS, CHUNK // GROUPS)), 1)
            least = tl.maximum(least, tl.min(bests, 0))
            reach = _reaching(key_N, least, scores, number, CHUNK)
    while (reach > most) & (end - least > 1):
        middle = (least + (end - least) // 2).to(tl.int32)
        there = _reaching(key_N, middle, scores, number, CHUNK)
        enough = there >= KEPT
        least, reach = tl.where(enough, middle, least), tl.where(enough, there, reach)
        end = tl.where(enough, end, middle.to(tl.int64))
    final = tl.full((), 2147483647, tl.int64)  # of those that equal the bound the last name that is taken
    if reach > most:
        above = _reaching(key_N, least.to(tl.int64) + 1, scores, number, CHUNK)
        final = _last_name(least, scores, names, number, most - above, CHUNK, NAMED)
    held = 0
    PIECE: tl.constexpr = CHUNK if CHUNK < 4096 else 4096
    for start in range(0, number, PIECE):
        at, name = start + tl.arange(0, PIECE), _names(names, start, number, PIECE, NAMED)
        key = _keys(scores, start, number, PIECE)
        take = (key > least) | ((key == least) & (name <= final))
        taken = take.to(tl.int32)
        to = row * most + held + tl.cumsum(taken, 0) - 1
        tl.store(kept + to, name, take)
        tl.store(kept_score + to, tl.load(scores + at, take, 0.0), take)
        held += tl.sum(taken, 0)
    tl.store(count + row, held)
    if not NAMED:
        tl.store(found + row, 0)
        reached = (least ^ ((least >> 31) & 0x7FFFFFFF)).to(tl.float32, bitcast=True)
        # scored again in another place, a token may differ in its last bits
        reached = reached - tl.abs(reached) * 1e-5 - 1e-30
        tl.store(floor + row, tl.where(held >= KEPT, reached, float("-inf")))


@triton.jit(do_not_specialize=["near", "pages", "G", "L", "most"])
def _survivors(q_pos, words, size, pos, filled, ready, after, operand, half, base, factor, block, count, floor, found,
               score, slot, near, pages, G, L, most, PAGE: tl.constexpr, W: tl.constexpr, WP: tl.constexpr,
               R: tl.constexpr, RP: tl.constexpr, NQ: tl.constexpr, NC: tl.constexpr, K: tl.constexpr,
               BYTES: tl.constexpr, ROWS: tl.constexpr, HEADS: tl.constexpr):  # fmt: skip
    """The tokens of one of these blocks that reach the bound, added to the row's."""
    row = tl.program_id(1).to(tl.int64)
    if tl.program_id(0) >= tl.load(count + row):
        return
    T = G * R if HEADS else G
    b, table, l = row // (T * L), row // L % T, row % L
    g = table // R if HEADS else table
    pieces = tl.cdiv(L, NQ // RP)
    at = (b * G + g) * pieces + l // (NQ // RP)
    column = tl.arange(0, NC)
    live = column < (1 if HEADS else R)
    from_column = l % (NQ // RP) * RP + (table % R if HEADS else column)
    from_column = tl.where(live, from_column, -1).to(tl.int32)
    held = operands(operand + at * (NQ * 32 * WP), from_column, NQ * K, K, WP)
    part = tl.arange(0, WP)
    half_N = tl.sum(tl.load(half + (at * WP + part)[:, None] * NQ + from_column[None], live[None], 0.0), 0)
    base_N = tl.load(base + at * NQ + from_column, live, float("-inf"))
    factor_N, bound = tl.load(factor + at * NQ + from_column, live, 0.0), tl.load(floor + row)
    earliest, here = tl.maximum(tl.load(after + b), -1), tl.load(q_pos + b * L + l)
    latest = tl.where(here >= tl.load(ready + b), here - near, -1)
    first = tl.load(block + row * most + tl.program_id(0)) * 64
    page, inside, end = b * pages + first // PAGE, first % PAGE, tl.load(filled + b)
    words_at = tl.multiple_of(tl.load(words + page), 16).to(tl.pointer_type(tl.int8)) + (g * PAGE + inside) * (4 * W)
    size_at = tl.load(size + page).to(tl.pointer_type(tl.float16)) + g * PAGE + inside
    pos_at = tl.load(pos + page).to(tl.pointer_type(tl.int64)) + inside
    bytes_NB = laid_out(words_at, W, ROWS, BYTES)
    for i in tl.static_range(64 // ROWS):
        each = i * ROWS + tl.arange(0, ROWS)
        size_N, pos_N = tl.load(size_at + each).to(tl.float32), tl.load(pos_at + each, first + each < end, -1)
        scores = tl.max(scored(bytes_NB, i, held, half_N, base_N, factor_N, size_N, W, WP, K, BYTES), 1)
        take = (pos_N > earliest) & (pos_N <= latest) & (scores >= bound)
        taken = take.to(tl.int32)
        to = row * (most * 64) + tl.atomic_add(found + row, tl.sum(taken, 0)) + tl.cumsum(taken, 0) - 1
        tl.store(score + to, scores, take)
        tl.store(slot + to, first + each, take)
