"""`Work`: the documents of a step, longest first, with the seconds of each in a group of each size.

In Python's floats: the same sums in the same order give the same plan on every rank.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from .costs import GroupCosts

Shape = tuple[int, ...]  # ranks of each group, the largest first


@dataclass(frozen=True, eq=False)
class Work:
    """The documents of a step.

    Args:
        lengths: Tokens, the longest first.
        seconds: Of each document, by the ranks of a group.
        fixed: Of a group whatever its documents, by its ranks.
        floor: What no group goes below, by its ranks.
        capacity: The most tokens of a rank.
        ranks: How many there are.
    """

    lengths: list[int]
    seconds: dict[int, list[float]]
    fixed: dict[int, float]
    floor: dict[int, float]
    capacity: int
    ranks: int

    @classmethod
    def of(cls, lengths: Sequence[int], ranks: int, costs: GroupCosts, capacity: int) -> Work:
        """Of documents in the order of `lengths`, which falls."""
        sizes = [2**k for k in range(ranks.bit_length())]
        pairs = [length * (length + 1) // 2 for length in lengths]
        whole = [costs.token * n + costs.pair * p for n, p in zip(lengths, pairs, strict=True)]
        seconds = {
            size: [x / size + costs.exchange[k] * n for x, n in zip(whole, lengths, strict=True)]
            for k, size in enumerate(sizes)
        }
        fixed, floor = (dict(zip(sizes, of_sizes, strict=False)) for of_sizes in (costs.fixed, costs.least))
        return cls(list(lengths), seconds, fixed, floor, capacity, ranks)

    def lowest(self, shape: Shape) -> float:
        """What no assignment to groups of this shape goes below, whatever the documents.

        The slowest group counts, so this floor is that of the whole assignment: inside, groups are compared without.
        """
        return max(max(self.fixed[size], self.floor[size]) for size in set(shape))

    def least(self, shape: Shape) -> float:
        """No assignment to groups of this shape takes less: no document, and no mean of the ranks."""
        sizes = sorted(set(shape))
        fixed = sum(self.fixed[size] * size for size in shape)
        alone, used = 0.0, fixed  # the longest document, and the seconds of all ranks together
        for n, length in enumerate(self.lengths):
            fits = [size for size in sizes if length <= self.capacity * size]
            if not fits:
                return float("inf")
            alone = max(alone, min(self.fixed[size] + self.seconds[size][n] for size in fits))
            used += min(size * self.seconds[size][n] for size in fits)
        return max(alone, used / self.ranks, self.lowest(shape))


@dataclass(frozen=True)
class Assignment:
    """Documents in groups.

    Args:
        seconds: Of the slowest group.
        shape: Ranks of each group.
        documents: Of each group, by their place in the work.
    """

    seconds: float
    shape: Shape
    documents: tuple[tuple[int, ...], ...]
