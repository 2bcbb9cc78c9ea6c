"""A document in pieces of a power of two of targets each, longest first (Dataset Decomposition)."""

from __future__ import annotations

import random


def cut(tokens: int, shortest: int, longest: int, draw: random.Random | None) -> list[tuple[int, int]]:
    """Pieces of a document as (start, size): each has `size` targets, so it takes `size + 1` tokens.

    Successive pieces share one token: the last target of one is the first input of the next, and no target is lost
    but those of a rest that is shorter than `shortest`.

    Args:
        tokens: Of the document.
        shortest: The smallest size, a power of two.
        longest: The largest.
        draw: Where more than twice the longest is left, sizes are drawn with the same expected number of tokens in
            each bucket. None: the longest is taken.
    """
    sizes = [1 << k for k in range(shortest.bit_length() - 1, longest.bit_length())]
    pieces, at = [], 0
    while (targets := tokens - at - 1) >= shortest:
        size = 1 << (targets.bit_length() - 1)
        if size > longest:
            # a size that is half as long comes twice as often
            size = longest if draw is None else draw.choices(sizes, [1 / size for size in sizes])[0]
        pieces.append((at, size))
        at += size
    return pieces
