"""`plan_micro_batches`: a step that the ranks do not hold at once, in as many passes on every rank."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from itertools import accumulate, pairwise

from .costs import GroupCosts
from .plan import Group, plan_step

MORE = 3  # passes beyond the fewest that hold the step: more of them may be faster, as similar lengths come together


def plan_micro_batches(lengths: Sequence[int], ranks: int, costs: GroupCosts, capacity: int) -> list[list[Group]]:
    """The passes of a step, each with its groups; their documents are numbers in `lengths`.

    Documents of similar lengths come together, as in FlexSP: sorted, and cut into passes of as many tokens.

    Args:
        lengths: Tokens of each document of the step.
        ranks: How many ranks there are.
        costs: What documents take in groups of each size.
        capacity: The most tokens of a rank in a pass.

    Raises:
        ValueError: No group holds one of the documents.
    """
    longest_first = sorted(range(len(lengths)), key=lambda n: -lengths[n])
    plan_step([lengths[n] for n in longest_first[:1]], ranks, costs, capacity)  # does a group hold the longest?
    fewest = max(1, -(-sum(lengths) // (ranks * capacity)))
    best: list[list[Group]] = []
    passes, last = fewest, max(1, len(lengths))
    while passes <= last:
        found = _planned(lengths, _cut(lengths, longest_first, passes), ranks, costs, capacity)
        if found and (not best or _seconds(found) < _seconds(best)):
            best = found
        if found:
            last = min(last, fewest + MORE)
        passes += 1
    return best


def _cut(lengths: Sequence[int], longest_first: Sequence[int], passes: int) -> list[Sequence[int]]:
    """Documents in so many passes, each ending where it comes nearest to its part of the tokens."""
    ends = [*accumulate((lengths[n] for n in longest_first), initial=0)]
    edges = [0]
    for number in range(1, passes):
        aim = ends[-1] * number // passes
        possible = range(edges[-1] + 1, len(longest_first) - passes + number + 1)
        edges.append(min(possible, key=lambda edge: abs(ends[edge] - aim), default=edges[-1]))
    edges.append(len(longest_first))
    return [longest_first[a:b] for a, b in pairwise(edges)]


def _planned(
    lengths: Sequence[int], passes: list[Sequence[int]], ranks: int, costs: GroupCosts, capacity: int
) -> list[list[Group]]:
    """The groups of each pass; nothing if one of them does not fit."""
    plans = []
    for numbers in passes:
        own = sorted(numbers)
        try:
            plan = plan_step([lengths[n] for n in own], ranks, costs, capacity)
        except ValueError:
            return []
        plans.append([dataclasses.replace(g, documents=tuple(own[n] for n in g.documents)) for g in plan])
    return plans


def _seconds(plans: list[list[Group]]) -> float:
    return sum(max(group.seconds for group in plan) for plan in plans)
