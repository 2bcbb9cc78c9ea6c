"""Look-up by codes, and of blocks, as they are defined: loops over tables, queries and tokens, in float64.

A key's code: turn it, less the mean key, by a fixed orthogonal matrix; divide each channel by its width; keep signs and
the mean of the absolute values. Of up to 64 channels keep besides which are at least this mean: they count one and a
half times a size, by least squares, the others half of it. Mean and widths are those of the first tokens.
"""

# R query heads of a group, L length, D head dim, C channels: D up to a multiple of 32
from __future__ import annotations

import functools
import math
from collections.abc import Sequence

import torch
from torch import Tensor

from tests.reference.lm_infinite import logit, rotated

LEAST = 1e-3


@functools.cache
def turn(D: int) -> Tensor:
    """(C, D): the matrix of the turn, from Kronecker products."""
    C = -(-D // 32) * 32
    seeded = torch.Generator().manual_seed(C)
    signs = [torch.diag(2.0 * torch.randint(2, (C,), generator=seeded).double() - 1) for _ in range(2)]
    order = torch.eye(C, dtype=torch.float64)[torch.randperm(C, generator=seeded)]
    hadamard = torch.ones(1, 1, dtype=torch.float64)
    while C % (2 * len(hadamard)) == 0:
        hadamard = torch.kron(torch.tensor([[1.0, 1.0], [1.0, -1.0]], dtype=torch.float64), hadamard)
    run = len(hadamard)
    blocks = torch.block_diag(*[hadamard / math.sqrt(run)] * (C // run))
    return (blocks @ signs[1] @ order @ blocks @ signs[0])[:, :D]


def code_scores(q_LD: Tensor, k_LD: Tensor, n_first: int) -> Tensor:
    """(L, L): what every query scores every key, by the keys' codes."""
    T, k_LD = turn(k_LD.shape[1]), k_LD.detach()
    mean = k_LD[:n_first].mean(0)
    width = ((k_LD[:n_first] - mean) @ T.T).square().mean(0).sqrt()
    width = width.clamp(min=LEAST * float(width.mean())) if float(width.mean()) > 0 else torch.ones_like(width)
    rest = (k_LD - mean) @ T.T / width
    absolute = rest.abs()
    signs = torch.where(rest >= 0, 1.0, -1.0).double()
    C = len(width)
    run = max(2**i for i in range(20) if C % 2**i == 0)  # channels that the turn mixes
    step = 3 * q_LD.norm(dim=1, keepdim=True) * width.max() / run**0.5 / 31

    def whole(part: float) -> Tensor:
        return (q_LD @ T.T * width * part / step.where(step > 0, 1.0)).round().clamp(-32, 31) * step  # six bits

    if C > 64:
        size = absolute.mean(1, keepdim=True).half().double()
        return whole(1) @ (signs * size).T + (q_LD @ mean)[:, None]
    large = absolute >= absolute.mean(1, keepdim=True)
    value = torch.where(large, 1.5, 0.5).double()
    size = ((absolute * value).sum(1, keepdim=True) / value.square().sum(1, keepdim=True)).half().double()
    more = torch.where(large, signs, -signs)
    return whole(1) @ (signs * size).T + whole(0.5) @ (more * size).T + (q_LD @ mean)[:, None]


def best(scores: list[tuple[float, int]], n: int) -> list[int]:
    """The tokens of the n best scores."""
    return [j for _, j in sorted(scores, reverse=True)[:n]]


def attention_of_group(
    q_RLD: Tensor,
    k_LD: Tensor,
    v_LD: Tensor,
    inv_freq_C: Tensor,
    *,
    n_global: int,
    n_local: int,
    top_k: int,
    shortlist: int,
    by: str,
    per: str,
    read_at: int,
    gate: str | None,
    gate_margin: float,
    looking: Sequence[int],
) -> Tensor:
    """The heads that share keys: each query's window, the first tokens at the ceiling, and what it looks up.

    `looking` are those of the R heads that look up.
    """
    R, L, D = q_RLD.shape
    moved = torch.stack([torch.stack([rotated(q, read_at, inv_freq_C) for q in q_LD]) for q_LD in q_RLD])
    by_keys = (moved @ k_LD.T).tolist()
    by_codes = [code_scores(q_LD, k_LD, min(256, n_local)).tolist() for q_LD in moved.detach()] if by == "signs" else []
    rows: list[list[Tensor]] = [[] for _ in range(R)]
    for i in range(L):
        middle = list(range(n_global, i - n_local + 1))
        near = [j for j in range(i + 1) if i - j < n_local]
        first = [j for j in range(min(n_global, i + 1)) if i - j >= n_local]
        at_near = [torch.stack([logit(q[i], k_LD[j], i - j, inv_freq_C) for j in near]) for q in q_RLD]
        for heads in [list(range(R))] if per == "group" else [[r] for r in range(R)]:
            voters = [r for r in heads if r in looking]
            listed = middle if voters else []
            if by == "signs":
                listed = best([(max(by_codes[r][i][j] for r in voters), j) for j in listed], shortlist)
            chosen = best([(max(by_keys[r][i][j] for r in voters), j) for j in listed], top_k)
            if gate == "score":
                above = [
                    [by_keys[r][i][j] / math.sqrt(D) - float(at_near[r].logsumexp(0)) for r in heads] for j in chosen
                ]
                chosen = [j for j, over in zip(chosen, above, strict=True) if max(over) >= -gate_margin]
            less = math.log(len(middle)) if gate == "count" and chosen else 0.0
            for r in heads:
                found = chosen if r in looking else []
                far = [logit(q_RLD[r, i], k_LD[j], n_local, inv_freq_C) for j in first]
                far += [logit(q_RLD[r, i], k_LD[j], read_at, inv_freq_C) - less for j in found]
                scores = torch.cat([at_near[r], torch.stack(far)]) if far else at_near[r]
                rows[r].append(torch.softmax(scores, 0) @ v_LD[near + first + found])
    return torch.stack([torch.stack(row) for row in rows])


def block_score(q_D: Tensor, k_ND: Tensor, by: str) -> float:
    """What a query scores a block of keys: its mean key, or the largest score within the bounds of every channel."""
    if by == "mean":
        return float(q_D @ k_ND.mean(0))
    low, high = k_ND.min(0).values, k_ND.max(0).values
    return sum(max(float(q * a), float(q * b)) for q, a, b in zip(q_D, low, high, strict=True))


def blocks_of_group(
    q_RLD: Tensor,
    k_LD: Tensor,
    v_LD: Tensor,
    inv_freq_C: Tensor,
    *,
    n_global: int,
    n_local: int,
    block_size: int,
    top_k: int,
    by: str,
    per: str,
    read_at: int,
) -> Tensor:
    """The heads that share keys: the window, the first tokens at the ceiling, the best blocks, and that at the edge."""
    R, L, _ = q_RLD.shape
    moved = [[rotated(q, read_at, inv_freq_C) for q in q_LD] for q_LD in q_RLD.detach()]
    rows: list[list[Tensor]] = [[] for _ in range(R)]
    for i in range(L):
        middle = list(range(n_global, i - n_local + 1))
        blocks = [middle[at : at + block_size] for at in range(0, len(middle), block_size)]
        edge = blocks.pop() if blocks and len(blocks[-1]) < block_size else []
        near = [(j, i - j) for j in range(i + 1) if i - j < n_local]
        near += [(j, n_local) for j in range(min(n_global, i + 1)) if i - j >= n_local]
        for heads in [list(range(R))] if per == "group" else [[r] for r in range(R)]:
            scores = [
                (max(block_score(moved[r][i], k_LD.detach()[block], by) for r in heads), m)
                for m, block in enumerate(blocks)
            ]
            chosen = [j for m in best(scores, top_k) for j in blocks[m]]
            seen = near + [(j, read_at) for j in chosen + edge]
            for r in heads:
                logits = torch.stack([logit(q_RLD[r, i], k_LD[j], at, inv_freq_C) for j, at in seen])
                rows[r].append(torch.softmax(logits, 0) @ v_LD[[j for j, _ in seen]])
    return torch.stack([torch.stack(row) for row in rows])
