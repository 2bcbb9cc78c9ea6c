"""The plan of an edit: which stretches of the old text stay, and which tokens are read, in which order."""

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

REPAIR = 256  # old tokens that are read again for each edit; recipes/benchmarks/pie.py measures the gain


def repair_of(repair: int | None) -> int:
    """The number of tokens that `repair` stands for."""
    if repair is None:
        return REPAIR
    if isinstance(repair, bool) or not isinstance(repair, int) or repair < 0:
        raise ValueError(f"repair={repair!r}: expected a number of tokens, 0 or more, or None for {REPAIR}.")
    return repair


@dataclass(frozen=True)
class Difference:
    """The common stretches of two texts, as far as a cache holds the old one and is to hold the new one.

    Attributes:
        found: The stretches that both have, in order.
        n_old: Tokens that the cache holds.
        n_new: Tokens that it is to hold.
        edits: Places at which something changed.
        deleted: Tokens of the old text that are not in the new one.
        new: The tokens that the cache is to hold.
        changed: The tokens of each place, before and after the edit, with one neighbour on either side.
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
        """Does the cache hold the new text already?"""
        same = [Match(0, 0, self.n_old)] if self.n_old else []
        return self.n_old == self.n_new and self.found == same


def compare(old: Ids, new: Ids, n_cached: int) -> Difference:
    """The difference of two texts; a cache has `n_cached` tokens of the old one and is to hold all but the last."""
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
class EditPlan:
    """Which stretches stay, perhaps elsewhere, and which tokens are read.

    Attributes:
        copies: The stretches that stay.
        read: The tokens to read.
        runs: The same as consecutive forwards, which may begin earlier to fill sliding windows.
    """

    copies: list[Match]
    read: list[Span]
    runs: list[Span]


def make_plan(difference: Difference, repair: int, layers: Sequence[Any] = (), *, anywhere: bool = True) -> EditPlan:
    """The plan of an edit that reads `repair` old tokens again for each place.

    Args:
        difference: Of the two texts.
        repair: Tokens per place.
        layers: Those of the cache.
        anywhere: Whether tokens can be read at any places at once; if not, those right after each place are read.
    """
    sliding = [layer for layer in layers if is_window(layer)]
    found, n_new = difference.found, difference.n_new
    copies = list(_without(found, again(difference, repair, anywhere)))
    read, end = [], 0
    for _, new, n in (*copies, Match(0, n_new, 0)):
        if new > end:
            read.append(Span(end, new))
        end = new + n
    runs = _with_windows(read, copies, n_new, sliding) if any(first_kept(layer) > 0 for layer in sliding) else read
    return EditPlan(copies, read, runs)


def again(difference: Difference, repair: int, anywhere: bool) -> NDArray[np.bool_]:
    """Which tokens of the new text are read again, one bool per token: `repair` for each place, if there are as many.

    Half of them are the tokens right after each place. A quarter are later repetitions of the edited phrase (`echoes`),
    whose first occurrence models look up. The rest are the last tokens, to which the next ones attend most.
    """
    chosen, stale = (np.zeros(difference.n_new, bool) for _ in range(2))
    after = [match for match in difference.found if match[:2] != (0, 0)]
    near = (repair + 1) // 2 if anywhere else repair
    for _, new, n in after:
        stale[new : new + n] = True
        chosen[new : new + min(near, n)] = True
    if anywhere:
        left = min(repair * len(after), int(np.count_nonzero(stale))) - int(np.count_nonzero(chosen))
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
        bounds = [0] * (not part[0]) + (np.flatnonzero(part[1:] != part[:-1]) + 1).tolist() + [n] * (not part[-1])
        for start, end in zip(bounds[::2], bounds[1::2], strict=True):
            yield Match(old + start, new + start, end - start)


def _with_windows(read: Sequence[Span], copies: Sequence[Match], n_new: int, sliding: Sequence[Any]) -> list[Span]:
    """Runs that begin early enough for sliding-window layers, which have evicted keys, to attend to the right ones.

    The first sliding layer's keys depend on their own tokens, the second one's on a window of those, and so on. So a
    run that begins one window per sliding layer earlier is exact, whatever the layers held at its beginning.
    """
    layer = max(sliding, key=lambda layer: layer.sliding_window)
    reach = layer.sliding_window - 1
    warm_up = reach * len(sliding)
    missing = np.ones(n_new, bool)  # in the window layers, so far
    for _, new, n in in_window(layer, copies):
        missing[new : new + n] = False
    runs: list[Span] = []
    # an empty run at the end stands for the window that the next token will read
    for span in (*read, Span(n_new, n_new)):
        start, end = span.start, span.end
        first = max(start - reach, 0)
        gaps = (np.flatnonzero(missing[first:start]) + first).tolist()
        if gaps:
            start, end = max(gaps[0] - warm_up, 0), end if len(span) else gaps[-1] + 1
        while runs and start <= runs[-1].end and start < end:
            start, end = min(start, runs[-1].start), max(end, runs.pop().end)
        if start < end:
            runs.append(Span(start, end))
            missing[start:end] = False
    return runs
