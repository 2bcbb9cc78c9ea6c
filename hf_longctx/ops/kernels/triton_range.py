"""The least and the highest score of a row, noted by the programs that score its parts, in Triton.

They are kept as whole numbers that are 0 where nothing has been noted, so that zeros are a row without scores.
"""

# mypy: disable-error-code="no-untyped-def"
# N rows
from __future__ import annotations

import triton
import triton.language as tl

BINS = tl.constexpr(1024)
STATE = tl.constexpr(1024 + 4)  # int32 of a row: the range (two), programs that came, the bound, bins


@triton.jit
def ordered(bits):
    """The bits of floats as whole numbers that are ordered as they are; and back."""
    return bits ^ ((bits >> 31) & 0x7FFFFFFF)


@triton.jit
def _range(state):
    """The least and the highest score of a row."""
    high, low = tl.load(state), 2147483647 - tl.load(state + 1)
    high, low = ordered((high - 1073741824) << 1), ordered((low - 1073741824) << 1)
    return low.to(tl.float32, bitcast=True), high.to(tl.float32, bitcast=True)


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
