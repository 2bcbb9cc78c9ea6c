"""What an edit does: what of the old text stays, and what is read, in which order."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ..cache.stock import is_window
from .difference import Ids, Match, matches
from .echoes import echoes
from .workspace import Span, first_kept, in_window

REPAIR = 256  # old tokens behind each edit that are read again; recipes/benchmarks/pie.py measures what that brings


def repair_of(repair: int | None) -> int:
    """The number of tokens that `repair` stands for."""
    if repair is None:
        return REPAIR
    if isinstance(repair, bool) or not isinstance(repair, int) or repair < 0:
        raise ValueError(f"repair={repair!r}: expected a number of tokens, 0 or more, or None for {REPAIR}.")
    return repair


@dataclass(frozen=True)
class Difference:
    """What two texts have in common, as far as a cache has the old one and is to have the new one.

    Attributes:
        found: the stretches that both have, in order.
        n_old, n_new: tokens that the cache has, and is to have.
        edits: places at which something changed.
        deleted: tokens of the old text that are in the new one no more.
        new: what the cache is to hold.
        changed: the tokens of each place, before and afterwards, with one on either side.
    """

    found: list[Match]
    n_old: int
    n_new: int
    edits: int
    deleted: int
    new: Ids
    changed: list[Ids]

    @property
    def nothing(self) -> bool:
        """Is the cache as it is to be?"""
        same = [Match(0, 0, self.n_old)] if self.n_old else []
        return self.n_old == self.n_new and self.found == same


def compare(old: Ids, new: Ids, n_cached: int) -> Difference:
    """The difference of two texts; the cache has `n_cached` tokens of the old one, and is to have all but one."""
    texts = matches(old, new)
    changed, edits = [], 0
    for a, b in pairwise([Match(0, 0, 0), *texts, Match(len(old), len(new), 0)]):
        if (a.old + a.length, a.new + a.length) != b[:2]:
            edits += 1
            changed += [
                ids[max(x + a.length - 1, 0) : y + 1] for ids, x, y in ((old, a.old, b.old), (new, a.new, b.new))
            ]
    deleted = len(old) - sum(n for _, _, n in texts)
    n_new = len(new) - 1
    fitting = (Match(o, i, min(n, n_cached - o, n_new - i)) for o, i, n in texts)
    return Difference(
        [match for match in fitting if match.length > 0], n_cached, n_new, edits, deleted, new[:n_new], changed
    )


@dataclass(frozen=True)
class Plan:
    """What stays (perhaps elsewhere), what is read, and in which runs: those may begin earlier, for windows' sake."""

    copies: list[Match]
    fresh: list[Span]
    runs: list[Span]


def make_plan(difference: Difference, repair: int, layers: Sequence[Any] = (), *, anywhere: bool = True) -> Plan:
    """The plan of an edit that reads `repair` old tokens for each place again.

    Args:
        layers: those of the cache.
        anywhere: whether tokens can be read at any places at once; else the next ones behind each place are.
    """
    sliding = [layer for layer in layers if is_window(layer)]
    found, n_new = difference.found, difference.n_new
    copies = list(_without(found, again(difference, repair, anywhere)))
    fresh, end = [], 0
    for _, new, n in (*copies, Match(0, n_new, 0)):
        if new > end:
            fresh.append(Span(end, new))
        end = new + n
    runs = _with_windows(fresh, copies, n_new, sliding) if any(first_kept(layer) > 0 for layer in sliding) else fresh
    return Plan(copies, fresh, runs)


def again(difference: Difference, repair: int, anywhere: bool) -> NDArray[np.bool_]:
    """Which tokens of the new text are read again, a bool each: `repair` for each place, if there are as many.

    Half of them are the next ones behind each place. A quarter are phrases of what was changed that come again
    (`echoes`), which models look up where they came first. The rest are the last ones, which what follows sees most.
    """
    chosen, stale = (np.zeros(difference.n_new, bool) for _ in range(2))
    behind = [match for match in difference.found if match[:2] != (0, 0)]
    near = (repair + 1) // 2 if anywhere else repair
    for _, new, n in behind:
        stale[new : new + n] = True
        chosen[new : new + min(near, n)] = True
    if anywhere:
        left = min(repair * len(behind), int(np.count_nonzero(stale))) - int(np.count_nonzero(chosen))
        far = echoes(difference.new, difference.changed, stale & ~chosen, left // 2)
        chosen[far] = True
        rest = np.flatnonzero(stale & ~chosen)
        chosen[rest[len(rest) - (left - len(far)) :]] = True
    return chosen


def _without(found: Sequence[Match], gone: NDArray[np.bool_]) -> Iterator[Match]:
    """The parts of the matches, in order, whose tokens of the new text are not `gone`."""
    for old, new, n in found:
        part = gone[new : new + n]
        # where a part begins and where it ends
        turns = [0] * (not part[0]) + (np.flatnonzero(part[1:] != part[:-1]) + 1).tolist() + [n] * (not part[-1])
        for start, end in zip(turns[::2], turns[1::2], strict=True):
            yield Match(old + start, new + start, end - start)


def _with_windows(fresh: Sequence[Span], copies: Sequence[Match], n_new: int, sliding: Sequence[Any]) -> list[Span]:
    """Runs that begin so much earlier that sliding-window layers, which have evicted keys, read the right ones.

    The first sliding layer's keys depend on their own tokens, the second one's on a window of those, and so on: so many
    windows before a token, all that it reads is right, whatever the run found at its own beginning.
    """
    layer = max(sliding, key=lambda layer: layer.sliding_window)
    reach = layer.sliding_window - 1
    warm_up = reach * len(sliding)
    have = [Span(new, new + n) for _, new, n in in_window(layer, copies) if n]
    runs: list[Span] = []
    # an empty run at the end stands for the window that the next token will read
    for span in (*fresh, Span(n_new, n_new)):
        missing = _first_gap([*have, *runs], Span(max(span.start - reach, 0), span.start))
        start = span.start if missing is None else max(min(missing, span.start) - warm_up, 0)
        end = span.end if len(span) or missing is None else _last_gap([*have, *runs], Span(missing, span.end))
        while runs and start <= runs[-1].end and start < end:
            start, end = min(start, runs[-1].start), max(end, runs.pop().end)
        if start < end:
            runs.append(Span(start, end))
    return runs


def _first_gap(have: Sequence[Span], need: Span) -> int | None:
    """The first position of `need` that none of `have` has."""
    at = need.start
    for span in sorted(have, key=lambda span: span.start):
        if span.start <= at:
            at = max(at, span.end)
    return at if at < need.end else None


def _last_gap(have: Sequence[Span], need: Span) -> int:
    """The end of the last gap in `need`."""
    at = need.end
    for span in sorted(have, key=lambda span: -span.end):
        if span.end >= at:
            at = min(at, span.start)
    return max(at, need.start)
