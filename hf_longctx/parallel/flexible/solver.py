"""How many groups of each size, by integer programming: on many ranks there are too many shapes to look at all.

FlexSP's program has a variable for each document and each group. Groups of a size are alike, so here documents are
given to sizes, with as many groups of each as hold them in a certain time, which is bisected. Which of the groups then
gets which document is left to greedy. The solver (HiGHS) is stopped by its work, not by a clock: ranks find the same.
"""

from __future__ import annotations

import importlib.util
from itertools import pairwise
from typing import Any

from .greedy import greedy
from .work import Assignment, Shape, Work

SINGLE, CHUNKS = 24, 8  # the longest documents by themselves, the others in so many chunks of similar ones
BISECTIONS = 6
NODES = 200  # of the solver's branch and bound, each time


def solver_version() -> str | None:
    """The version of scipy, which has the solver; None without."""
    if importlib.util.find_spec("scipy") is None:
        return None
    from scipy import __version__

    return str(__version__)


def solved(work: Work, best: Assignment | None) -> Assignment | None:
    """A better assignment than `best`, with a shape that the solver has found; None: none, or no scipy."""
    if solver_version() is None or best is None or not work.lengths:
        return None
    buckets = _buckets(len(work.lengths))
    low, high, found = 0.0, best.seconds, None
    for _ in range(BISECTIONS):
        seconds = (low + high) / 2
        shape = _shape(work, buckets, seconds)
        if shape is None:
            low = seconds
            continue
        high = seconds
        found = greedy(work, shape, found.seconds if found else best.seconds) or found
    return found


def _buckets(documents: int) -> list[range]:
    """Documents that the program counts as alike, longest first."""
    singles = min(documents, SINGLE)
    edges = [singles + (documents - singles) * n // CHUNKS for n in range(CHUNKS + 1)]
    return [*(range(n, n + 1) for n in range(singles)), *(range(a, b) for a, b in pairwise(edges) if b > a)]


def _shape(work: Work, buckets: list[range], seconds: float) -> Shape | None:
    """Groups that take `seconds` at most, if documents could be split among those of a size; None: there are none.

    The variables are how many groups there are of each size, then how many documents of each bucket each size gets.
    """
    import numpy as np
    from scipy.optimize import Bounds, LinearConstraint, milp

    sizes = sorted(work.seconds)
    S, K = len(sizes), len(buckets)
    takes_KS, most_KS, alone_KS = np.zeros((3, K, S))
    tokens_K = np.array([sum(work.lengths[n] for n in bucket) / len(bucket) for bucket in buckets])
    for k, bucket in enumerate(buckets):
        for s, size in enumerate(sizes):
            takes_KS[k, s] = sum(work.seconds[size][n] for n in bucket) / len(bucket)
            fits = work.fixed[size] + work.seconds[size][bucket[0]] <= seconds
            most_KS[k, s] = len(bucket) * (fits and work.lengths[bucket[0]] <= work.capacity * size)
            # more than half of a group's time: not two of them in a group
            alone_KS[k, s] = 2 * work.seconds[size][bucket[-1]] > seconds - work.fixed[size]
    # of a size whose floor is higher there is no group
    groups_S = np.array([work.ranks // size * (work.floor[size] <= seconds) for size in sizes])
    all_ranks = _row(np.array(sizes), np.zeros((K, S)))
    all_documents = [_row(np.zeros(S), np.eye(K)[k][:, None].repeat(S, 1)) for k in range(K)]
    held = []  # by the groups of each size: seconds, tokens, and documents that must be alone
    for s, size in enumerate(sizes):
        limits = (seconds - work.fixed[size], work.capacity * size, 1)
        for used_K, limit in zip((takes_KS[:, s], tokens_K, alone_KS[:, s]), limits, strict=True):
            held.append(_row(-limit * np.eye(S)[s], used_K[:, None] * np.eye(S)[s]))
    counts = np.array([work.ranks, *map(len, buckets)])
    result = milp(
        _row(np.zeros(S), takes_KS * sizes),  # as few seconds of all ranks as can be
        integrality=np.ones(S + K * S),
        bounds=Bounds(0, _row(groups_S, most_KS)),
        constraints=[
            LinearConstraint(np.array([all_ranks, *all_documents]), counts, counts),
            LinearConstraint(np.array(held), -np.inf, 0),
        ],
        options={"node_limit": NODES, "mip_rel_gap": 0.05},
    )
    if result.x is None:
        return None
    groups = [round(x) for x in result.x[:S]]
    return tuple(size for size, count in sorted(zip(sizes, groups, strict=True), reverse=True) for _ in range(count))


def _row(groups_S: Any, documents_KS: Any) -> Any:
    """A number for each variable."""
    import numpy as np

    return np.concatenate([groups_S, documents_KS.reshape(-1)])
