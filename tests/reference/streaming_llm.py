"""StreamingLLM as its authors decode: one token after another, a list for a cache, positions inside it."""

# L length, D head dim, C rotary pairs
from __future__ import annotations

import math

import torch
from torch import Tensor

from tests.reference.lm_infinite import rotated


def attention_of_one_head(
    q_LD: Tensor, k_LD: Tensor, v_LD: Tensor, inv_freq_C: Tensor, n_sink: int, window: int
) -> Tensor:
    """float64 in, float64 out; arXiv 2309.17453, section 3.2 and figure 4."""
    rows, cache = [], []
    for token in range(len(q_LD)):
        cache.append(token)
        if len(cache) > n_sink + window:
            del cache[n_sink]  # the oldest token that is no sink
        query = rotated(q_LD[token], len(cache) - 1, inv_freq_C)
        scores = [query @ rotated(k_LD[kept], place, inv_freq_C) for place, kept in enumerate(cache)]
        rows.append(torch.softmax(torch.stack(scores) / math.sqrt(q_LD.shape[1]), 0) @ v_LD[cache])
    return torch.stack(rows)
