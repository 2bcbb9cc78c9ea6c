"""Which groups ranks can form: powers of two, the largest first, so that each begins at a multiple of its size."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from .work import Shape

ENUMERATED = 8  # up to so many ranks every shape is looked at: there are ten of 8, and 1,828 of 64


def shapes_of(ranks: int, sizes: Sequence[int] | None = None) -> list[Shape]:
    """Every shape of up to 8 ranks; of more, those of one or two sizes. `sizes`: of these sizes only."""
    allowed = [size for size in (2**k for k in range(ranks.bit_length())) if sizes is None or size in sizes]
    if ranks <= ENUMERATED:
        return list(_partitions(ranks, allowed[::-1]))
    found: set[Shape] = set()
    for large in allowed:
        for times in range(ranks // large + 1):
            left = ranks - times * large
            found.update(
                (large,) * times + (small,) * (left // small)
                for small in allowed
                if small < large and left % small == 0
            )
        if ranks % large == 0:
            found.add((large,) * (ranks // large))
    return sorted(found)


def _partitions(ranks: int, sizes: Sequence[int]) -> Iterator[Shape]:
    if not ranks:
        yield ()
        return
    for n, size in enumerate(sizes):
        if size <= ranks:
            yield from ((size, *rest) for rest in _partitions(ranks - size, sizes[n:]))
