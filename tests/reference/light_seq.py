"""LightSeq's balanced causal schedule (Li, Shao et al. 2023, arXiv 2310.03294), all workers in one process.

Worker p of P holds chunk p of queries, keys and values. In a plain ring worker p has work in p of P steps only. Here a
worker that has nothing left to do for itself computes for one that has: it is sent that worker's queries, and returns
the output and the log-sum-exp, which are merged there. P // 2 + 1 steps instead of P.
"""

# P workers, C rows of a chunk, D head dim
from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor


class Work(NamedTuple):
    """In one step `worker` computes the queries of chunk `query` against the keys of chunk `key`."""

    worker: int
    query: int
    key: int


def schedule(workers: int) -> list[list[Work]]:
    """The steps; in each, a worker has one piece of work at most."""
    steps = [[Work(p, p, p) for p in range(workers)]]
    for t in range(1, workers // 2 + 1):
        step = []
        for p in range(workers):
            if p >= t:  # its own queries, the keys of the worker t before
                step.append(Work(p, p, p - t))
            elif 2 * t < workers:  # help: its own keys, the queries of the worker that is t before it in the ring
                step.append(Work(p, p - t + workers, p))
        steps.append(step)
    return steps


def attend(q_CD: Tensor, k_CD: Tensor, v_CD: Tensor, diagonal: bool) -> tuple[Tensor, Tensor]:
    """attn(): the output of two chunks, and its log-sum-exp."""
    scores = q_CD @ k_CD.T / q_CD.shape[1] ** 0.5
    if diagonal:
        scores = scores.masked_fill(torch.ones_like(scores, dtype=torch.bool).triu(1), float("-inf"))
    return scores.softmax(1) @ v_CD, scores.logsumexp(1)


def rescale(out: Tensor, lse: Tensor, part: Tensor, part_lse: Tensor) -> tuple[Tensor, Tensor]:
    """Two outputs over different keys as one."""
    both = torch.logaddexp(lse, part_lse)
    return out * (lse - both).exp()[:, None] + part * (part_lse - both).exp()[:, None], both


def distributed_attention(q: list[Tensor], k: list[Tensor], v: list[Tensor]) -> tuple[list[Tensor], list[Tensor]]:
    """Causal attention of one head: the outputs (C, D) and log-sum-exps (C,) of each worker."""
    first, *others = schedule(len(q))
    found = [attend(q[p], k[p], v[p], diagonal=True) for p, _, _ in first]
    for step in others:
        for _, query, key in step:
            found[query] = rescale(*found[query], *attend(q[query], k[key], v[key], diagonal=False))
    return [out for out, _ in found], [lse for _, lse in found]
