"""PoSE (Zhu et al. 2023, https://arxiv.org/abs/2309.10400): a short window with the distances of a long one.

A window is cut into chunks, and the positions of each skip some before they go on (section 3.2): what is told in one
chunk and asked for in another lies as far apart as in a long window, at the cost of a short one.
"""

# T tokens of a window
from __future__ import annotations

import random
from itertools import pairwise

import torch
from torch import Tensor


def skipping(rng: random.Random, tokens: int, length: int, chunks: int) -> Tensor:
    """Positions of a window's tokens, (T,), rising from 0 to below `length`, which skip between its chunks.

    As in the paper, the chunks' lengths are random, and what a chunk has skipped in all is drawn evenly, from what the
    one before it has to the most that there is. The text goes on from chunk to chunk.

    Args:
        rng: Of the cuts and the skips.
        tokens: Of the window, T.
        length: Of the window that it stands for. One that is longer than the longest window by the length of those
            that are cut makes distances as frequent up to the longest window's whole length as in its middle.
        chunks: Into which it is cut.
    """
    cuts = [0, *sorted(rng.sample(range(1, tokens), chunks - 1)), tokens]
    positions_T, skipped = torch.arange(tokens), 0
    for start, end in pairwise(cuts[1:]):
        skipped = rng.randint(skipped, length - tokens)
        positions_T[start:end] += skipped
    return positions_T
