"""Curricula of lengths: how much more often than by its tokens a bucket is drawn, from the shortest to the longest."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence

# the n-th of N buckets, from the shortest on
CURRICULA: dict[str, Callable[[int, int], float]] = {
    "uniform": lambda n, N: 1.0,
    "grow-p2": lambda n, N: 2.0 ** (N - 1 - n),  # 32:16:8:4:2:1: short ones first, which run out
    "grow-linear": lambda n, N: float(N - n),  # 6:5:4:3:2:1
    "shrink-p2": lambda n, N: 2.0**n,
}


def odds_of(curriculum: str | Mapping[int, float], sizes: Sequence[int]) -> dict[int, float]:
    """The odds of each size. ValueError for a curriculum that has none for one of them."""
    if isinstance(curriculum, str):
        if curriculum not in CURRICULA:
            raise ValueError(f"curriculum={curriculum!r}: expected {', '.join(CURRICULA)}, or odds by size.")
        return {size: CURRICULA[curriculum](n, len(sizes)) for n, size in enumerate(sorted(sizes))}
    missing = [size for size in sizes if not curriculum.get(size, 0) > 0]
    if missing:
        raise ValueError(f"curriculum: no odds above 0 for pieces of {missing} tokens. Give one for each size.")
    return {size: float(curriculum[size]) for size in sizes}
