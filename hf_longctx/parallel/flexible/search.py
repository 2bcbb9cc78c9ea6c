"""Branch and bound on few ranks: documents in groups of one shape, better than greedy where few documents are long."""

from __future__ import annotations

from .work import Assignment, Shape, Work

NEAR = 0.995  # a plan this near to its bound is good enough


class BoundedSearch:
    """Looks for better assignments, at so many places of documents at most, over all shapes together.

    Args:
        work: The documents.
        budget: How many places of a document are looked at: a bound of its work, the same on every rank.
    """

    def __init__(self, work: Work, budget: int) -> None:
        self.work, self.budget = work, budget

    def better(self, shape: Shape, below: float) -> Assignment | None:
        """Documents in groups of this shape, in fewer seconds than `below`; None: nothing was found in the budget."""
        work, groups = self.work, range(len(shape))
        # seconds of all ranks that the documents from the n-th on take at least
        left = [0.0]
        for n in reversed(range(len(work.lengths))):
            left.append(left[-1] + min(size * work.seconds[size][n] for size in set(shape)))
        left.reverse()
        loads, rooms = [work.fixed[size] for size in shape], [work.capacity * size for size in shape]
        chosen = [0] * len(work.lengths)
        best: list[int] | None = None
        used = sum(size * load for size, load in zip(shape, loads, strict=True))

        def place(n: int, used: float, worst: float) -> None:
            nonlocal best, below
            if n == len(chosen):
                best, below = list(chosen), worst
                return
            length, tried = work.lengths[n], set()
            for after, group in sorted((loads[group] + work.seconds[shape[group]][n], group) for group in groups):
                if not self.budget:
                    return
                self.budget -= 1
                size = shape[group]
                alike = size, loads[group], rooms[group]
                if rooms[group] < length or alike in tried:
                    continue
                tried.add(alike)
                more = used + size * work.seconds[size][n]
                reached = max(worst, after)
                if max(reached, (more + left[n + 1]) / work.ranks) >= below * NEAR:
                    continue
                before = loads[group]
                loads[group], rooms[group], chosen[n] = after, rooms[group] - length, group
                place(n + 1, more, reached)
                loads[group], rooms[group] = before, rooms[group] + length

        place(0, used, work.lowest(shape))
        if best is None:
            return None
        documents = tuple(tuple(n for n, own in enumerate(best) if own == group) for group in groups)
        return Assignment(below, shape, documents)
