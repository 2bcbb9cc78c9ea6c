"""Packs of documents, the same for a seed everywhere, and the layout of them that other packages have."""

from __future__ import annotations

import random
from collections.abc import Sequence
from itertools import pairwise

import torch
from torch import Tensor

from hf_longctx.parallel import Layout, Piece

from .world import World

TOTAL = 2**16
MEAN, SPREAD = 8.0, 1.2  # of a lognormal: documents of about 6k tokens


def sizes(tiny: bool) -> tuple[int, float]:
    """Tokens of a pack, and the mean of the logarithm of its documents' lengths."""
    return (256, 3.0) if tiny else (TOTAL, MEAN)


def pack(total: int, seed: int, mean: float = MEAN) -> list[int]:
    """Lengths of documents, `total` in sum."""
    rng, lengths = random.Random(seed), list[int]()
    while sum(lengths) < total:
        lengths.append(max(16, int(rng.lognormvariate(mean, SPREAD))))
    lengths[-1] -= sum(lengths) - total
    return lengths


def batch(lengths: Sequence[int], vocabulary: int, world: World, seed: int = 1) -> dict[str, Tensor]:
    """Random tokens of one pack, the same on every process; positions only where there is more than one document."""
    generator = torch.Generator().manual_seed(seed)
    ids = torch.randint(3, vocabulary, (1, sum(lengths)), generator=generator)
    positions = torch.cat([torch.arange(length) for length in lengths])[None]
    labels = torch.where(positions == 0, -100, ids)
    given = {"input_ids": ids, "labels": labels} | ({"position_ids": positions} if len(lengths) > 1 else {})
    return {name: x.to(world.device) for name, x in given.items()}


class GlobalZigzag:
    """In place of `Layout`: the whole pack is cut by zigzag as one document would be, and documents are masked."""

    @staticmethod
    def of(lengths: Sequence[int], ranks: int, cut: object = None) -> Layout:
        """The layout; each chunk holds a part of every document that it crosses."""
        chunks = Layout.of([sum(lengths)], ranks, "all").pieces
        starts = Layout.of(lengths, 1).starts
        return Layout(tuple(lengths), tuple(tuple(_crossed(own, starts)) for own in chunks))


def _crossed(chunks: Sequence[Piece], starts: Sequence[int]) -> list[Piece]:
    found = []
    for document, (first, after) in enumerate(pairwise(starts)):
        for _, begin, end in chunks:
            if max(begin, first) < min(end, after):
                found.append(Piece(document, max(begin, first) - first, min(end, after) - first))
    return found
