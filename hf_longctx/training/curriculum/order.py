"""The endless order of steps: each of one bucket, with the same number of tokens."""

from __future__ import annotations

import random
from collections import Counter, deque
from collections.abc import Iterator, Mapping, Sequence


def steps(sizes: Sequence[int], tokens: int, odds: Mapping[int, float], cycles: int, seed: int) -> Iterator[list[int]]:
    """Steps of `tokens` tokens without end, as numbers of pieces.

    A pass has cycles, each with an equal share of every bucket. In a cycle the next bucket is drawn by its odds times
    the tokens that it still has. Pieces that do not fill a step wait for the next cycle, or pass: none is lost, and
    each comes once a pass.
    """
    buckets: dict[int, list[int]] = {size: [] for size in sorted(set(sizes))}
    for number, size in enumerate(sizes):
        buckets[size].append(number)
    waiting: dict[int, deque[int]] = {size: deque() for size in buckets}
    rng = random.Random(seed)
    while True:
        shuffled = {size: rng.sample(pieces, len(pieces)) for size, pieces in buckets.items()}
        for cycle in range(cycles):
            for size, pieces in shuffled.items():
                share = slice(len(pieces) * cycle // cycles, len(pieces) * (cycle + 1) // cycles)
                waiting[size].extend(pieces[share])
            while full := [size for size in waiting if len(waiting[size]) * size >= tokens]:
                (size,) = rng.choices(full, [odds[size] * size * len(waiting[size]) for size in full])
                yield [waiting[size].popleft() for _ in range(tokens // size)]


def steps_of_a_pass(sizes: Sequence[int], tokens: int) -> int:
    """How many steps the first pass has; a later one may have one more a bucket, of what waited."""
    return sum(count * size // tokens for size, count in Counter(sizes).items())
