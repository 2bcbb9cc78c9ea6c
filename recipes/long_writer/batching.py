"""Which answers are written together: few batches of any lengths, in caches that hold no more than they may."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

BLOCK = 256  # columns; a cache has a multiple, which masks of fast kernels need


def together(widths: Sequence[int], limits: Sequence[int], most: int) -> Iterator[list[int]]:
    """Numbers of prompts in as few batches as hold `most` tokens each, the longest first, at least one prompt in each.

    A step takes about as long for many rows as for few, so few long batches are faster than many without padding.
    """
    batch: list[int] = []
    for number in sorted(range(len(widths)), key=lambda i: -widths[i] - limits[i]):
        grown = [*batch, number]
        if batch and len(grown) * columns([widths[i] for i in grown], [limits[i] for i in grown]) > most:
            yield batch
            grown = [number]
        batch = grown
    if batch:
        yield batch


def columns(widths: Sequence[int], limits: Sequence[int]) -> int:
    """Of the cache of a batch: its longest prompt and its longest answer."""
    return -(-(max(widths) + max(limits)) // BLOCK) * BLOCK
