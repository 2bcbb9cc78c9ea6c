"""Hits by a quantity of the captions, such as their length."""

# C captions, T tokens
from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise

import torch
from torch import Tensor


@dataclass(frozen=True)
class Bin:
    """`share` of the `count` captions whose quantity is in [low, high); None if there are none."""

    low: int
    high: int
    share: float | None
    count: int


def by_bins(hits: Tensor, quantity: Tensor, edges: Sequence[int]) -> list[Bin]:
    """The share of hits in each bin between two edges.

    Args:
        hits: [C] booleans, of `found`.
        quantity: [C], for each caption: its tokens, or the token at which its deciding sentence starts.
        edges: At least two, rising. A value outside all bins is left out.
    """
    if len(edges) < 2 or any(high <= low for low, high in pairwise(edges)):
        raise ValueError(f"edges={list(edges)}: expected at least two numbers, each above the one before it.")
    if hits.ndim != 1 or hits.shape != quantity.shape:
        raise ValueError(
            f"hits {list(hits.shape)} and quantity {list(quantity.shape)}: expected one value per caption."
        )
    bins = []
    for low, high in pairwise(edges):
        inside = (quantity >= low) & (quantity < high)
        count = int(inside.sum())
        bins.append(Bin(low, high, float(hits[inside].double().mean()) if count else None, count))
    return bins


def caption_lengths(ids: Tensor, end: int) -> Tensor:
    """Tokens of each caption, with start and end: [C] from [C, T] ids that are padded on the right."""
    is_end = ids == end
    if not bool(is_end.any(1).all()):
        raise ValueError(f"a caption without its end token ({end}). Give whole rows of the tokenizer.")
    return is_end.to(torch.int8).argmax(1) + 1
