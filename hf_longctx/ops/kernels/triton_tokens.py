"""The best tokens of those that have reached a row's bound, exactly, in Triton.

`_survivors` has counted them in bins. Those above the bin in which the last of the best is are taken as they are read,
by one program of most rows. Those in it, a few, are written down, and the program that comes last ranks them. Where
very many scores are alike, too many are in it: then this program finds the bound (`triton_best._least`).
"""

# mypy: disable-error-code="no-untyped-def"
from __future__ import annotations

import triton
import triton.language as tl

from .triton_best import _keys, _least, _part
from .triton_range import BINS, CAME, COUNTS, HELD, LEFT, STATE, begun, binned, reached

CHUNK = 4096  # tokens of a program: below 2^15, as two positions are one number
FEW = tl.constexpr(64)  # tokens of one bin that are ranked


@triton.jit(do_not_specialize=["below"])
def _tokens(scores, slots, numbers, tally, kept, count, few, room, below, KEPT: tl.constexpr,
            CHUNK: tl.constexpr):  # fmt: skip
    """The best KEPT tokens of a row, or all if there are fewer, in any order: a part of it. Slots are below `below`."""
    row, part = tl.program_id(1).to(tl.int64), tl.program_id(0)
    number = tl.load(numbers + row)
    parts = tl.maximum(tl.cdiv(number, CHUNK), 1)
    if part >= parts:
        return
    scores += row * room
    slots += row * room
    kept += row * KEPT
    tally += row * STATE
    few += row * FEW
    at = part * CHUNK + tl.arange(0, CHUNK)
    # what lies behind the last one is read, as is the rest of the room, and not taken: four at a time are read so
    score, slot, there = tl.load(scores + at, at < room), tl.load(slots + at, at < room), at < number
    low, high = begun(tally)
    bins = tl.arange(0, BINS)
    counts = tl.load(tally + COUNTS + bins)
    counts = tl.where(bins == 0, number - tl.sum(counts, 0), counts)  # see `triton_range.note`
    into, reach, inside = reached(counts, KEPT)
    above, bin = reach - inside, binned(score, low, high)
    exact = reach > KEPT  # not all of the last bin are taken
    last = there & (bin == into) & exact
    take = there & (bin >= into) & (last == 0)
    both = take.to(tl.int32) + (last.to(tl.int32) << 16)
    to, held, left = tl.cumsum(both, 0) - both, 0, 0
    if parts > 1:
        every = tl.sum(both, 0)
        held = tl.atomic_add(tally + HELD, every & 65535, sem="relaxed")
        left = tl.atomic_add(tally + LEFT, every >> 16, sem="relaxed")
    tl.store(kept + held + (to & 65535), slot, take)
    if part == 0:
        tl.store(count + row, tl.minimum(number, KEPT))
    if exact:
        last = last & (inside <= FEW)
        tl.store(few + left + (to >> 16), _keys(score, slot), last)
        tl.debug_barrier()  # what all threads have written comes before what one of them says now
        came = 0
        if parts > 1:
            came = tl.atomic_add(tally + CAME, 1)
        if came == parts - 1:
            if inside <= FEW:
                one = tl.arange(0, FEW)
                key = tl.load(few + one, one < inside, -(2**63), volatile=True)  # written by any of the row's programs
                rank = tl.sum((key[None] > key[:, None]).to(tl.int32), 1)
                tl.store(kept + above + rank, 2147483647 - (key & 2147483647), rank < KEPT - above)
            else:
                least = _least(scores, slots, number, KEPT, below, low, high, into, above, KEPT, CHUNK, True, True)
                for start in range(0, number, CHUNK):
                    slot, score, key, there = _part(scores, slots, start, number, CHUNK, True)
                    these = (there & (binned(score, low, high) == into) & (key >= least)).to(tl.int32)
                    tl.store(kept + above + tl.cumsum(these, 0) - 1, slot, these > 0)
                    above += tl.sum(these, 0)
