"""What an edit does: what of the old text stays, and what is read, in which order."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Any

from torch import Tensor
from transformers.cache_utils import DynamicSlidingWindowLayer

from .difference import Match, matches
from .workspace import Span, first_kept, in_window

REPAIR = 64  # old tokens behind each edit that are read again; recipes/benchmarks/pie.py measures what that brings


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
    """

    found: list[Match]
    n_old: int
    n_new: int
    edits: int
    deleted: int

    @property
    def nothing(self) -> bool:
        """Is the cache as it is to be?"""
        same = [Match(0, 0, self.n_old)] if self.n_old else []
        return self.n_old == self.n_new and self.found == same


def compare(old: Tensor, new: Tensor, n_cached: int) -> Difference:
    """The difference of two texts; the cache has `n_cached` tokens of the old one, and is to have all but one."""
    texts = matches(old, new)
    gaps = pairwise([Match(0, 0, 0), *texts, Match(len(old), len(new), 0)])
    edits = sum((a.old + a.length, a.new + a.length) != b[:2] for a, b in gaps)
    deleted = len(old) - sum(n for _, _, n in texts)
    n_new = len(new) - 1
    fitting = (Match(o, i, min(n, n_cached - o, n_new - i)) for o, i, n in texts)
    return Difference([match for match in fitting if match.length > 0], n_cached, n_new, edits, deleted)


@dataclass(frozen=True)
class Plan:
    """What stays (perhaps elsewhere), what is read, and in which runs: those may begin earlier, for windows' sake."""

    copies: list[Match]
    fresh: list[Span]
    runs: list[Span]


def make_plan(found: Sequence[Match], n_new: int, repair: int, layers: Sequence[Any] = ()) -> Plan:
    """The plan of an edit that reads `repair` old tokens behind each place again, for the layers of a cache."""
    sliding = [layer for layer in layers if isinstance(layer, DynamicSlidingWindowLayer)]
    copies = []
    for old, new, n in found:
        again = 0 if old == new == 0 else min(repair, n)
        if n > again:
            copies.append(Match(old + again, new + again, n - again))
    fresh, end = [], 0
    for _, new, n in (*copies, Match(0, n_new, 0)):
        if new > end:
            fresh.append(Span(end, new))
        end = new + n
    runs = _with_windows(fresh, copies, n_new, sliding) if any(first_kept(layer) > 0 for layer in sliding) else fresh
    return Plan(copies, fresh, runs)


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
