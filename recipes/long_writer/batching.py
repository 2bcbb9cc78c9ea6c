"""Which answers are written together, in caches that hold no more than they may, and what that costs.

A step of a batch reads its whole cache, padding included. Up to `FIXED` tokens that takes no longer than to launch its
kernels: many short answers of any lengths stand together. From there on it takes as much longer as the cache is larger,
so long answers stand with those of about their length.
"""

from __future__ import annotations

from collections.abc import Sequence

BLOCK = 256  # columns; a cache has a multiple, which masks of fast kernels need
# tokens of a cache whose reading takes as long as all else in a step, which is about 2.5 ms on an H200 for SmolLM2, of
# which it reads 160,000 tokens, of 23 kB, in a millisecond
FIXED = 400_000


def together(widths: Sequence[int], limits: Sequence[int], most: int) -> list[list[int]]:
    """Numbers of prompts in batches that cost least, each of at most `most` tokens, at least one prompt in each.

    Args:
        widths: Tokens of the prompts.
        limits: The most tokens of their answers.
        most: Prompts and answers, padding included.
    """
    # batches are runs of this order
    order = sorted(range(len(widths)), key=lambda i: (-widths[i] - limits[i], i))
    least, begins = [0.0], [0]  # of the first so many of them: the least cost, and where their last batch begins
    for end in range(1, len(order) + 1):
        width = limit = 0
        found: list[tuple[float, int]] = []
        for start in range(end - 1, -1, -1):
            width, limit = max(width, widths[order[start]]), max(limit, limits[order[start]])
            rows = end - start
            if rows > 1 and rows * columns([width], [limit]) > most:
                break
            found.append((least[start] + _cost(rows, width, limit), start))
        cost, start = min(found)
        least.append(cost)
        begins.append(start)
    batches, end = list[list[int]](), len(order)
    while end:
        batches.append(order[begins[end] : end])
        end = begins[end]
    return batches[::-1]


def columns(widths: Sequence[int], limits: Sequence[int]) -> int:
    """Of the cache of a batch: its longest prompt and its longest answer."""
    return rounded(max(widths) + max(limits))


def rounded(columns: int) -> int:
    """The least multiple of `BLOCK` that is no less."""
    return -(-columns // BLOCK) * BLOCK


def cost(widths: Sequence[int], limits: Sequence[int], most: int) -> float:
    """What the answers cost at most, in tokens that are read, as `together` takes its arguments."""
    batches = ([(widths[i], limits[i]) for i in one] for one in together(widths, limits, most))
    return sum(_cost(len(one), max(w for w, _ in one), max(limit for _, limit in one)) for one in batches)


def _cost(rows: int, width: int, limit: int) -> float:
    # the cache grows with the answers
    return limit * (FIXED + rows * (width + limit / 2))
