"""From seconds that were measured to `GroupCosts`: what to measure within a time, and least squares of 0 or more."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from itertools import combinations
from typing import Any

import numpy as np

from .costs import GroupCosts

FIRST = 1024  # tokens of the first measurement, before it is known how many fit the time
PASSES = 40  # of the longest sort, in the time that there is


@dataclass(frozen=True)
class Load:
    """Documents of one length in a group.

    Args:
        documents: How many.
        length: Tokens of each.
        ranks: Of the group, a power of two.
    """

    documents: int
    length: int
    ranks: int

    def row(self, size: int) -> tuple[float, float, float, float]:
        """What it takes of a token, a pair, an exchanged token and a pass, as it counts for groups of a size."""
        tokens, pairs = self.documents * self.length, self.documents * self.length * (self.length + 1) / 2
        return tokens / self.ranks, pairs / self.ranks, tokens if size > 1 else 0, 1


def calibrated(run: Callable[[Load], float], ranks: int, tokens: int, device: str, seconds: float = 20) -> GroupCosts:
    """Measure for so many seconds, or for two rounds if these take longer, and fit.

    Args:
        run: Runs a load, forward and backward, and returns its seconds: the same number on every rank.
        ranks: How many there are.
        tokens: The most tokens of a rank that are measured; fewer where they would take too long.
        device: The card, whose costs they are.
        seconds: How long it may take in all.
    """
    spent, length = 0.0, min(FIRST, tokens)
    while True:
        run(Load(1, length, 1))  # compiles, and fills caches
        last = run(Load(1, length, 1))
        spent += 2 * last
        if length >= tokens or 4 * last > seconds / PASSES:
            break
        length = min(2 * length, tokens)
    part, piece = max(1, length // 4), max(1, length // 16)
    sizes = [2**k for k in range(1, ranks.bit_length())]
    loads = [Load(1, length, 1), Load(16, piece, 1), Load(1, part, 1), Load(4, piece, 1)]
    loads += [Load(1, n, size) for size in sizes for n in (length, part)]
    took: dict[Load, list[float]] = {load: [] for load in loads}
    while True:
        for load in loads:
            took[load].append(run(load))
        one_round = sum(times[-1] for times in took.values())
        spent += one_round
        if len(took[loads[0]]) > 1 and spent + one_round > seconds:
            return fitted({load: min(times) for load, times in took.items()}, device)


def fitted(took: dict[Load, float], device: str) -> GroupCosts:
    """Costs by least squares of relative errors: tokens, pairs and a pass on one rank, then groups of each size."""
    token, pair, first = _least_squares({load: s for load, s in took.items() if load.ranks == 1}, 1, (0, 1, 3), {})
    known = {0: token, 1: pair}
    exchange, fixed = [0.0], [first]
    for size in sorted({load.ranks for load in took} - {1}):
        own = {load: seconds for load, seconds in took.items() if load.ranks == size}
        of_a_token, of_a_pass = _least_squares(own, size, (2, 3), known)
        exchange.append(of_a_token)
        fixed.append(of_a_pass)
    return GroupCosts(token, pair, tuple(exchange), tuple(fixed), device)


def _least_squares(
    took: dict[Load, float], size: int, columns: tuple[int, ...], known: dict[int, float]
) -> list[float]:
    """Numbers of 0 or more for some columns of `Load.row`, with others known: the best of all choices of zeros."""
    seconds = np.array(list(took.values()))
    rows = np.array([load.row(size) for load in took]) / seconds[:, None]
    left = np.ones(len(took)) - sum(rows[:, column] * x for column, x in known.items())
    best: tuple[float, list[float]] = float(left @ left), [0.0] * len(columns)
    for count in range(1, len(columns) + 1):
        for chosen in combinations(range(len(columns)), count):
            own: Any = rows[:, [columns[c] for c in chosen]]
            scale = np.linalg.norm(own, axis=0)
            x = np.linalg.lstsq(own / scale, left, rcond=None)[0] / scale
            error = float(np.square(own @ x - left).sum())
            if (x >= 0).all() and error < best[0]:
                best = error, [float(x[chosen.index(c)]) if c in chosen else 0.0 for c in range(len(columns))]
    return best[1]
