"""The blocks with the best scores of a row, in Triton, by many programs: counted in bins of the row's range.

`triton_range` notes the range while blocks are scored. `_bins` counts them, and the program that is last sets the
bound: the bin from which on there are k blocks. Where very many scores are alike, more than there is room for would be
above it: then this program alone finds the exact bound, in this bin (`triton_best._least`). `_listed` names the blocks
above it. The tokens of these are counted in bins too, which `_bins` makes empty.
"""

# mypy: disable-error-code="no-untyped-def"
from __future__ import annotations

import triton
import triton.language as tl

from .triton_best import _keys, _least, _score
from .triton_range import BINS, BOUND, CAME, COUNTS, STATE, begin, binned, ends, reached

PART = tl.constexpr(1024)  # blocks of a program
LOWEST = tl.constexpr(-(2**62))


@triton.jit
def _number(numbers, asked, row, T, L, ASKED: tl.constexpr):
    """How many blocks a row has; none if its table is not asked."""
    number = tl.cdiv(tl.load(numbers + row // (T * L)), 64).to(tl.int32)
    if ASKED:
        number *= tl.load(asked + row // L % T)
    return number


@triton.jit(do_not_specialize=["T", "L", "room", "most"])
def _bins(scores, numbers, asked, state, tally, least, floor, count, found, T, L, room, most, KEPT: tl.constexpr,
          CHUNK: tl.constexpr, ASKED: tl.constexpr):  # fmt: skip
    """Count some blocks of a row; the program that comes last finds the bin, key and score that they must reach."""
    row, part = tl.program_id(1).to(tl.int64), tl.program_id(0)
    number = _number(numbers, asked, row, T, L, ASKED)
    parts = tl.maximum(tl.cdiv(number, PART), 1)
    if part >= parts:
        return
    scores += row * room
    state += row * STATE
    at = part * PART + tl.arange(0, PART)
    score = tl.load(scores + at, at < number, float("-inf"))
    low, high = ends(state)
    tl.atomic_add(state + COUNTS + binned(score, low, high), 1, score > float("-inf"), sem="relaxed")
    tl.debug_barrier()  # what all threads have counted comes before what one of them says now
    if tl.atomic_add(state + CAME, 1) == parts - 1:
        bins = tl.arange(0, BINS)
        into, reach, inside = reached(tl.load(state + COUNTS + bins, volatile=True), KEPT)
        key, least_score = tl.full((), LOWEST, tl.int64), float("-inf")
        if reach > most:
            key = _least(scores, scores, number, most, number, low, high, into, reach - inside, KEPT, CHUNK, False,
                         True)  # fmt: skip
            into *= 0
            least_score = _score(key)
        elif reach >= KEPT:
            width = (high - low) / BINS
            least_score = low + (into - 0.5) * width - 1e-5 * tl.maximum(tl.abs(low), tl.abs(high)) - 1e-30
        tl.store(state + BOUND, into)
        tl.store(state + CAME, 0)
        tl.store(state + COUNTS + bins, tl.zeros((BINS,), tl.int32))
        tl.store(count + row, 0)
        tl.store(least + row, key)
        tl.store(floor + row, least_score)
        tl.store(found + row, 0)
        begin(tally + row * STATE, tl.maximum(low, least_score), high)


@triton.jit(do_not_specialize=["T", "L", "room", "most"])
def _listed(scores, numbers, asked, state, least, block, count, T, L, room, most, ASKED: tl.constexpr):
    """The blocks of a part of a row that reach the bound, added to the row's list."""
    row, part = tl.program_id(1).to(tl.int64), tl.program_id(0)
    number = _number(numbers, asked, row, T, L, ASKED)
    if part * PART >= number:
        return
    at = part * PART + tl.arange(0, PART)
    score = tl.load(scores + row * room + at, at < number, float("-inf"))
    low, high = ends(state + row * STATE)
    take = (score > float("-inf")) & (binned(score, low, high) >= tl.load(state + row * STATE + BOUND))
    taken = (take & (_keys(score, at) >= tl.load(least + row))).to(tl.int32)
    to = tl.atomic_add(count + row, tl.sum(taken, 0), sem="relaxed") + tl.cumsum(taken, 0) - 1
    tl.store(block + row * most + to, at, taken > 0)
