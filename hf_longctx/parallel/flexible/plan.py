"""`plan_step`: which ranks work together in a step, and on which documents. All ranks plan alike, without a word."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import accumulate

from .costs import GroupCosts
from .greedy import greedy
from .search import NEAR, BoundedSearch
from .shapes import ENUMERATED, shapes_of
from .solver import solved
from .work import Assignment, Work

LOOKS = 1500  # of the search on few ranks: a millisecond or two
SEARCHED = 64  # with more documents greedy is as good


@dataclass(frozen=True)
class Group:
    """Ranks that work together in a step.

    Args:
        ranks: Which, one after the other; how many is a power of two.
        documents: The numbers of their documents, rising; none are left to some groups where there are few.
        seconds: What that takes by the cost model.
    """

    ranks: range
    documents: tuple[int, ...]
    seconds: float


def plan_step(
    lengths: Sequence[int],
    ranks: int,
    costs: GroupCosts,
    capacity: int | None = None,
    sizes: Sequence[int] | None = None,
) -> list[Group]:
    """Groups for the documents of a step, so that the slowest of them takes as few seconds as can be.

    Up to 8 ranks every shape is looked at, that is, how many groups of which sizes there are. Beyond, those of one or
    two sizes and, where scipy is installed, the ones that its integer programming finds.

    Args:
        lengths: Tokens of each document.
        ranks: How many there are.
        costs: What documents take in groups of each size.
        capacity: The most tokens of a rank; None: as many as there are.
        sizes: Ranks that a group may have; None: every power of two.

    Returns:
        The groups in the order of their ranks. Every document is in one of them.

    Raises:
        ValueError: No group holds a document, or the ranks together do not hold all.
    """
    work, order = _work(lengths, ranks, costs, capacity)
    best: Assignment | None = None
    shapes = sorted((work.least(shape), shape) for shape in shapes_of(ranks, sizes))
    for least, shape in shapes:
        if best is None or least < best.seconds:
            best = greedy(work, shape, best.seconds if best else float("inf")) or best
    if ranks > ENUMERATED and sizes is None:
        best = solved(work, best) or best
    elif len(lengths) <= SEARCHED:
        search = BoundedSearch(work, LOOKS)
        for least, shape in shapes:
            below = best.seconds if best else float("inf")
            if least < below * NEAR:
                best = search.better(shape, below) or best
    if best is None:
        raise ValueError(_no_room(lengths, ranks, capacity))
    starts = accumulate(best.shape, initial=0)
    return [
        Group(
            range(start, start + size),
            tuple(sorted(order[n] for n in documents)),
            max(work.floor[size], work.fixed[size] + sum(work.seconds[size][n] for n in documents)),
        )
        for start, size, documents in zip(starts, best.shape, best.documents, strict=False)
    ]


def _work(lengths: Sequence[int], ranks: int, costs: GroupCosts, capacity: int | None) -> tuple[Work, list[int]]:
    """The work of a step, and the number of each of its documents."""
    if ranks < 1:
        raise ValueError(f"ranks={ranks}: expected 1 or more.")
    if min(lengths, default=0) < 0:
        raise ValueError(f"lengths={list(lengths)}: expected the tokens of each document, 0 or more.")
    if capacity is not None and capacity < 1:
        raise ValueError(f"capacity={capacity}: expected how many tokens a rank can hold, 1 or more.")
    total = sum(lengths)
    room = max(total, 1) if capacity is None else capacity
    largest = 2 ** (ranks.bit_length() - 1)
    if costs.ranks < largest:
        raise ValueError(f"costs are of up to {costs.ranks} ranks; expected those of groups of {largest} too.")
    if total > room * ranks or max(lengths, default=0) > room * largest:
        raise ValueError(_no_room(lengths, ranks, capacity))
    order = sorted(range(len(lengths)), key=lambda n: -lengths[n])
    return Work.of([lengths[n] for n in order], ranks, costs, room), order


def _no_room(lengths: Sequence[int], ranks: int, capacity: int | None) -> str:
    longest = max(lengths, default=0)
    return (
        f"a batch of {sum(lengths)} tokens in {len(lengths)} documents, the longest of {longest}, does not fit {ranks} "
        f"ranks of capacity={capacity} tokens: a document fits a group of up to {2 ** (ranks.bit_length() - 1)} ranks. "
        f"Give fewer tokens at a time (hf_longctx.parallel.plan_micro_batches), split the longest documents, "
        f"or raise the capacity."
    )
