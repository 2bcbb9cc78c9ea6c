"""The least and the highest score of a row, noted by the programs that score its parts, and bins between, in Triton.

They are kept as whole numbers that are 0 where nothing has been noted, so that zeros are a row without scores.
"""

# mypy: disable-error-code="no-untyped-def"
# N rows
from __future__ import annotations

import triton
import triton.language as tl

BINS = tl.constexpr(1024)
# int32 of a row for its blocks, and of a tally of its tokens: two of the range, programs that came, the bound, tokens
# that are kept and that are left to choose among, bins
STATE = tl.constexpr(1024 + 8)
CAME, BOUND, HELD, LEFT, COUNTS = tl.constexpr(2), tl.constexpr(3), tl.constexpr(4), tl.constexpr(5), tl.constexpr(8)


@triton.jit
def ordered(bits):
    """The bits of floats as whole numbers that are ordered as they are; and back."""
    return bits ^ ((bits >> 31) & 0x7FFFFFFF)


@triton.jit
def ends(state):
    """The least and the highest score of a row."""
    high, low = tl.load(state), 2147483647 - tl.load(state + 1)
    high, low = ordered((high - 1073741824) << 1), ordered((low - 1073741824) << 1)
    return low.to(tl.float32, bitcast=True), high.to(tl.float32, bitcast=True)


@triton.jit
def begin(tally, low, high):
    """Make a tally of tokens empty: in bins from `low` to `high`."""
    bins = tl.arange(0, BINS)
    tl.store(tally, low.to(tl.int32, bitcast=True))
    tl.store(tally + 1, high.to(tl.int32, bitcast=True))
    tl.store(tally + CAME, 0)
    tl.store(tally + HELD, 0)
    tl.store(tally + LEFT, 0)
    tl.store(tally + COUNTS + bins, tl.zeros((BINS,), tl.int32))


@triton.jit
def begun(tally):
    """Where the bins of a tally begin and end."""
    return tl.load(tally).to(tl.float32, bitcast=True), tl.load(tally + 1).to(tl.float32, bitcast=True)


@triton.jit
def binned(score, low, high):
    """The bin of a score, which is the same wherever it is asked for."""
    scale = BINS / tl.maximum(high - low, 1e-30)
    return tl.minimum(tl.maximum((score - low) * scale, 0.0), BINS - 1.0).to(tl.int32)


@triton.jit
def note(tally, score_N, low, high, live_N):
    """Count these scores, but for those of the first bin: they may be very many, and are what is left."""
    bin_N = binned(score_N, low, high)
    tl.atomic_add(tally + (bin_N + COUNTS), live_N.to(tl.int32), live_N & (bin_N > 0), sem="relaxed")


@triton.jit
def reached(counts, KEPT: tl.constexpr):
    """From the bins of a row: the one from which on there are KEPT, how many these are, and how many are in it.

    The first one if there are fewer. They are found at once, as one number.
    """
    bins = tl.arange(0, BINS)
    at_least = tl.cumsum(counts, 0, reverse=True)
    number = (bins.to(tl.int64) << 52) + (at_least.to(tl.int64) << 26) + counts
    most = tl.max(tl.where((at_least >= KEPT) | (bins == 0), number, 0), 0)
    return (most >> 52).to(tl.int32), ((most >> 26) & 67108863).to(tl.int32), (most & 67108863).to(tl.int32)


@triton.jit
def widen(state, row_N, high_N, low_N, live_N):
    """Make a row's range hold these scores; -inf and inf: there are none."""
    some_N = live_N & (high_N > float("-inf"))
    tl.atomic_max(state + row_N * STATE, _rounded(high_N), some_N, sem="relaxed")
    tl.atomic_max(state + row_N * STATE + 1, 2147483647 - _rounded(low_N), some_N, sem="relaxed")


@triton.jit
def _rounded(score):
    """Ordered as scores are, from 0 on: without their last bit."""
    return (ordered(score.to(tl.int32, bitcast=True)) >> 1) + 1073741824
