"""From seconds that were measured to `GroupCosts`: least squares of 0 or more, above the floor of the host's launches.

A load takes the longer of a floor and of its own work. Which loads are at the floor is part of what is fitted: the
quickest ones, as many as explain all loads best. Where the floor adds to the work, as on a CPU, none are.

Groups cost more than a rank's share by what they exchange, which may be less than noise hides. Then they are taken to
cost what it hides: small groups exchange less for certain, and a larger one must be worth it.
"""

from __future__ import annotations

from collections.abc import Callable
from itertools import combinations
from typing import Any

import numpy as np

from .costs import GroupCosts
from .loads import Load, measured

ABOVE = 1.2  # a load that takes less than so many times the floor, or than noise adds to that, is not told from it
ALIKE = 1e-12  # squared relative errors that differ by less: rounding


def calibrated(run: Callable[[Load], float], ranks: int, tokens: int, device: str, seconds: float = 20) -> GroupCosts:
    """Measure for so many seconds, or each load twice if that takes longer, and fit.

    Args:
        run: Runs a load, forward and backward, and returns its seconds: the same number on every rank.
        ranks: How many there are.
        tokens: The most tokens of a rank that are measured; fewer where they would take too long.
        device: The card, whose costs they are.
        seconds: How long it may take in all, besides what first passes compile.

    Raises:
        ValueError: The loads do not tell what documents cost.
    """
    return fitted(measured(run, ranks, tokens, seconds), device)


def fitted(passes: dict[Load, list[float]], device: str) -> GroupCosts:
    """Costs by least squares of relative errors: tokens, pairs and a pass on one rank, then groups of each size."""
    took = {load: min(times) for load, times in passes.items()}
    # between the two quickest passes of a load, which is about what noise has left of the quickest
    hidden = float(np.mean([sorted(times)[1] / min(times) - 1 for times in passes.values()]))
    alone = {load: seconds for load, seconds in took.items() if load.ranks == 1}
    least = [min(alone.values())]
    token, pair, first = _above_floor(alone, 1, (0, 1, 3), {}, least[0])
    _check(alone, least[0], ABOVE * (1 + hidden), token, pair)
    known = {0: token, 1: pair}
    exchange, fixed = [0.0], [first]
    for size in sorted({load.ranks for load in took} - {1}):
        least.append(min(seconds for load, seconds in took.items() if load.ranks == size))
        own = {load: seconds * (1 + hidden) for load, seconds in took.items() if load.ranks == size}
        of_a_token, of_a_pass = _above_floor(own, size, (2, 3), known, least[-1])
        exchange.append(of_a_token)
        fixed.append(of_a_pass)
    return GroupCosts(token, pair, tuple(exchange), tuple(fixed), device, tuple(least))


def _check(took: dict[Load, float], floor: float, times: float, token: float, pair: float) -> None:
    """Loads of the most tokens are told from the floor, as one document and as many, and documents are not free."""
    most = max(load.documents * load.length for load in took)
    # 16 pieces of a length that 16 does not divide have a few tokens less
    largest = [load for load in took if load.documents * load.length > most - 16 or load.documents == 16]
    low = [load for load in largest if took[load] < times * floor]
    if not low and (token or pair):
        return
    seconds = ", ".join(f"{load.documents} x {load.length} tokens {took[load]:.3g} s" for load in largest)
    raise ValueError(
        f"what documents cost was not found: on one process, {seconds}, and the quickest pass took {floor:.3g} s. "
        f"Expected {times:.3g} times the quickest or more, rising with the tokens: shorter passes take what the host "
        f"needs to launch them, whatever the documents. Measure longer documents: more `tokens`, and more `seconds` "
        f"(they are as long as both allow). Where a process never holds more, groups gain nothing: train with degree=1."
    )


def _above_floor(
    took: dict[Load, float], size: int, columns: tuple[int, ...], known: dict[int, float], floor: float
) -> list[float]:
    """Numbers for some columns of `Load.row` from the loads above the floor, so that all loads are explained best."""
    quickest_first = sorted(took, key=lambda load: took[load])
    seconds = np.array([took[load] for load in quickest_first])
    rows = np.array([load.row(size) for load in quickest_first])
    best, error = [0.0] * len(columns), float("inf")
    for at_floor in range(len(took)):
        found = _least_squares({load: took[load] for load in quickest_first[at_floor:]}, size, columns, known)
        numbers = known | dict(zip(columns, found, strict=True))
        work = sum(rows[:, column] * x for column, x in numbers.items())
        off = float(np.square(np.maximum(floor, work) / seconds - 1).sum())
        if off < error - ALIKE:
            best, error = found, off
    return best


def _least_squares(
    took: dict[Load, float], size: int, columns: tuple[int, ...], known: dict[int, float]
) -> list[float]:
    """Numbers of 0 or more for some columns of `Load.row`, with others known: the best of all choices of zeros."""
    seconds = np.array(list(took.values()))
    rows = np.array([load.row(size) for load in took]) / seconds[:, None]
    left = np.ones(len(took)) - sum(rows[:, column] * x for column, x in known.items())
    best: tuple[float, list[float]] = float(left @ left), [0.0] * len(columns)
    for count in range(1, min(len(columns), len(took)) + 1):
        for chosen in combinations(range(len(columns)), count):
            own: Any = rows[:, [columns[c] for c in chosen]]
            scale = np.linalg.norm(own, axis=0)
            x = np.linalg.lstsq(own / scale, left, rcond=None)[0] / scale
            error = float(np.square(own @ x - left).sum())
            if (x >= 0).all() and error < best[0] - ALIKE:
                best = error, [float(x[chosen.index(c)]) if c in chosen else 0.0 for c in range(len(columns))]
    return best[1]
