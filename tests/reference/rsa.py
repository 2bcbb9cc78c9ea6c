"""Ring self-attention as the paper writes it (Li et al. 2021, arXiv 2105.13120), all devices in one process.

N devices hold a chunk each of queries, keys and values. First the chunks of keys travel around the ring, and each
device multiplies its queries with every one of them: its rows of the scores. Then the chunks of values travel, and the
output of a device is the sum of its scores times each chunk. There is no online softmax: the whole row of scores is
there before the values come. The paper's models see all tokens; `causal` hides the later ones.
"""

# n devices, C rows of a chunk (of any length each), S keys of all, D head dim
from __future__ import annotations

import torch
from torch import Tensor


def ring(chunks: list[Tensor]) -> list[list[Tensor]]:
    """What each device has after 0, 1, ... n - 1 hops to the next device: [hops][device]."""
    found = [chunks]
    while len(found) < len(chunks):
        found.append([found[-1][device - 1] for device in range(len(chunks))])
    return found


def ring_self_attention(q: list[Tensor], k: list[Tensor], v: list[Tensor], causal: bool = False) -> list[Tensor]:
    """(C, D) of each device: one head."""
    n, dim = len(q), q[0].shape[1]
    starts = [sum(len(x) for x in q[:device]) for device in range(n)]
    scores: list[list[Tensor]] = [[torch.empty(0)] * n for _ in range(n)]
    for hops, keys in enumerate(ring(k)):
        for device in range(n):
            scores[device][(device - hops) % n] = q[device] @ keys[device].T / dim**0.5
    weights = []
    for device in range(n):
        row_CS = torch.cat(scores[device], 1)
        if causal:
            position = torch.arange(len(q[device])) + starts[device]
            row_CS = row_CS.masked_fill(torch.arange(row_CS.shape[1]) > position[:, None], float("-inf"))
        weights.append(row_CS.softmax(1).split([len(x) for x in k], 1))
    out = [torch.zeros_like(x) for x in q]
    for hops, values in enumerate(ring(v)):
        for device in range(n):
            out[device] = out[device] + weights[device][(device - hops) % n] @ values[device]
    return out
