"""The tokens with the best scores by their codes, in Triton: from the best of each block, exactly, in two steps.

The k blocks with the best maxima hold the k best tokens, ties by the lower slot. `triton_bins` finds these blocks and a
bound that they reach, `_survivors` scores them again and keeps the tokens that reach it, and `triton_tokens` keeps k of
these. The order in which programs find tokens has no influence: no two have one key. An exact bound is found by one
program, which counts keys in 31 bins of equal width between two bounds and continues in one of the bins, until not
many more than k are above; `_select` finds it so for any row.
"""

# mypy: disable-error-code="no-untyped-def"
# B batch, T tables, L queries, W words of a code, NQ columns, K the k of "k best"
from __future__ import annotations

import triton
import triton.language as tl

from .triton_codes import laid_out, operands, scored
from .triton_range import STATE, begun, binned, note, ordered


@triton.jit
def _keys(score, name):
    """Scores, and of equal ones the lower name first, as int64 that are all different."""
    return (ordered(score.to(tl.int32, bitcast=True)).to(tl.int64) << 31) + (2147483647 - name)


@triton.jit
def _score(key):
    """The score of a key, and a little less: scored again in another place, a token may differ in its last bits."""
    score = ordered((key >> 31).to(tl.int32)).to(tl.float32, bitcast=True)
    return score - tl.abs(score) * 1e-5 - 1e-30


@triton.jit
def _part(scores, names, start, number, CHUNK: tl.constexpr, NAMED: tl.constexpr):
    """A piece of a row: names, scores, their keys, and which are candidates."""
    at = start + tl.arange(0, CHUNK)
    score = tl.load(scores + at, at < number, float("-inf"))
    name = tl.load(names + at, at < number, 0) if NAMED else at
    return name, score, _keys(score, name), score > float("-inf")


@triton.jit
def _fitting(least, last):
    """By how much keys are shifted so that those from `least` to `last` are in 31 bins: by the least that does."""
    power = ((last - least).to(tl.float32).to(tl.int32, bitcast=True) >> 23) - 127  # of two, perhaps rounded up
    shift = tl.maximum(power - 4, 0)
    return tl.where(((last - least) >> shift) < 31, shift, shift + 1)


@triton.jit
def _counted(key, inside, least, shift):
    """How many of these keys are in each of 31 bins; the last, of 32, has what is not inside."""
    return tl.histogram(tl.where(inside, (key - least) >> shift, 31).to(tl.int32), 32)


@triton.jit
def _narrowed(counts, least, last, above, shift, below, KEPT: tl.constexpr):
    """The bin in which the bound is: its ends, how many are from it on, and how many are above it.

    Where its keys have one score, names from 0 on and below `below` are all that there can be in it.
    """
    bins = tl.arange(0, 32)
    counts = tl.where(bins < 31, counts, 0)
    at_least = above + tl.sum(counts, 0) - tl.cumsum(counts, 0) + counts
    into = tl.max(tl.where(at_least >= KEPT, bins * (bins < 31).to(tl.int32), 0), 0)
    reach = tl.sum(tl.where(bins == into, at_least, 0), 0)
    above = reach - tl.sum(tl.where(bins == into, counts, 0), 0)
    least += into.to(tl.int64) << shift
    last = tl.minimum(last, least + (tl.full((), 1, tl.int64) << shift) - 1)
    alike = (least >> 31) == (last >> 31)
    return tl.where(alike, tl.maximum(least, ((least >> 31) << 31) + 2147483648 - below), least), last, reach, above


@triton.jit
def _least(scores, names, number, most, below, low, high, bin, above, KEPT: tl.constexpr, CHUNK: tl.constexpr,
           NAMED: tl.constexpr, BINNED: tl.constexpr, GROUPS: tl.constexpr = 0):  # fmt: skip
    """The key from which on there are the best `KEPT` of a row and a few more, at most `most`.

    Names are below `below`. With BINNED it is in this bin from `low` to `high`, above which are so many. GROUPS is a
    power of two from KEPT to CHUNK, or 0.
    """
    low_N, high_N = tl.full((CHUNK,), 2**62, tl.int64), tl.full((CHUNK,), -(2**62), tl.int64)
    some_N = tl.zeros((CHUNK,), tl.int32)
    for start in range(0, number, CHUNK):
        _, score, key, some = _part(scores, names, start, number, CHUNK, NAMED)
        if BINNED:
            some = some & (binned(score, low, high) == bin)
        low_N = tl.minimum(low_N, tl.where(some, key, 2**62))
        high_N = tl.maximum(high_N, tl.where(some, key, -(2**62)))
        some_N += some.to(tl.int32)
    least, last, reach = tl.min(low_N, 0), tl.max(high_N, 0), above + tl.sum(some_N, 0)
    if GROUPS > 0:  # noqa: SIM102  # this is known when it is compiled
        if reach > most:
            # of so many groups, KEPT or more, each has one that is no less than the least of the groups' best
            least = tl.maximum(least, tl.min(tl.max(tl.reshape(high_N, (GROUPS, CHUNK // GROUPS)), 1), 0))
    while reach > most:
        counts, shift = tl.zeros((32,), tl.int32), _fitting(least, last)
        for start in range(0, number, CHUNK):
            _, _, key, some = _part(scores, names, start, number, CHUNK, NAMED)
            counts += _counted(key, some & (key >= least) & (key <= last), least, shift)
        least, last, reach, above = _narrowed(counts, least, last, above, shift, below, KEPT)
    return least


@triton.jit(do_not_specialize=["per_number", "most"])
def _select(scores, names, numbers, kept, kept_score, count, floor, found, per_number, room, most, KEPT: tl.constexpr,
            CHUNK: tl.constexpr, NAMED: tl.constexpr, GROUPS: tl.constexpr = 0):  # fmt: skip
    """Of one row the best `KEPT` and a few more, at most `most`, in the order that they have, and a bound of them."""
    row = tl.program_id(0).to(tl.int64)
    scores += row * room
    names += row * room
    # of blocks, or of what `_survivors` has found
    number = tl.load(numbers + row // per_number)
    number = (number if NAMED else tl.cdiv(number, 64)).to(tl.int32)
    held = number * 0
    least = _least(scores, names, number, most, 2**31, 0.0, 0.0, 0, held, KEPT, CHUNK, NAMED, False, GROUPS)
    for start in range(0, number, CHUNK):
        name, score, key, some = _part(scores, names, start, number, CHUNK, NAMED)
        take = some & (key >= least)
        to = row * most + held + tl.cumsum(take.to(tl.int32), 0) - 1
        tl.store(kept + to, name, take)
        tl.store(kept_score + to, score, take)
        held += tl.sum(take.to(tl.int32), 0)
    tl.store(count + row, held)
    if not NAMED:
        tl.store(found + row, 0)
        tl.store(floor + row, tl.where(held >= KEPT, _score(least), float("-inf")))


@triton.jit(do_not_specialize=["near", "pages", "G", "L", "most"])
def _survivors(q_pos, words, size, pos, filled, ready, after, operand, half, base, factor, block, count, floor, found,
               score, slot, tally, near, pages, G, L, most, PAGE: tl.constexpr, W: tl.constexpr, WP: tl.constexpr,
               R: tl.constexpr, RP: tl.constexpr, NQ: tl.constexpr, NC: tl.constexpr, K: tl.constexpr,
               BYTES: tl.constexpr, ROWS: tl.constexpr, HEADS: tl.constexpr):  # fmt: skip
    """The tokens of one of these blocks that reach the bound, added to the row's, and counted in its bins."""
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
    low, high = begun(tally + row * STATE)
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
        note(tally + row * STATE, scores, low, high, take)
