"""Attention problems for the kernels, and their truth: the definition, pair by pair, in float64."""

# B batch, H query heads, G key/value heads, L queries, S keys, D head dim, K selected keys of a query
from __future__ import annotations

import itertools
import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from hf_longctx.ops.bias import DistanceBuckets
from hf_longctx.ops.branch import Branch
from hf_longctx.ops.masks import ANY, BeyondWindow, Causal, Chunk, Full, Mask, Packed, TopBlocks, TopKeys, Window
from hf_longctx.ops.positions import Positions

# who sees whom, by query and key position: the definitions, written a second time
SEES: dict[Any, Callable[[Any, Tensor, Tensor], Tensor]] = {
    Causal: lambda mask, q, k: k <= q,
    Window: lambda mask, q, k: (k <= q) & (k > q - mask.size),
    BeyondWindow: lambda mask, q, k: k <= q - mask.size,
    Full: lambda mask, q, k: (q == q) & (k == k),
    Packed: lambda mask, q, k: (q >> 32 == k >> 32) & SEES[type(mask.inside)](mask.inside, q & LOW, k & LOW),
    Chunk: lambda mask, q, k: (k <= q) & _chunks_back(mask, q, k),
}
LOW = 2**32 - 1
MASKS = {
    "causal": Causal(),
    "window": Window(7),
    "wide-window": Window(500),
    "outside": BeyondWindow(9),
    "full": Full(),
    "own-chunk": Chunk(5),
    "chunk-before": Chunk(5, back=1),
    "chunks-before-that": Chunk(5, back=2, earlier=True),
}


@dataclass
class Problem:
    """One branch's inputs; `grad` is the gradient that arrives at the output."""

    q: Tensor
    k: Tensor
    v: Tensor
    q_pos: Tensor
    k_pos: Tensor
    grad: Tensor

    def branch(self, mask: Any, **more: Any) -> Branch:
        return Branch(self.q, self.k, self.v, positions(self.q_pos, self.k_pos), mask, **more)


def positions(q_pos: Tensor, k_pos: Tensor) -> Positions:
    """With everything that is true of them."""
    return Positions(
        q_pos,
        k_pos,
        same_rows=q_pos.shape == k_pos.shape and torch.equal(q_pos, k_pos) and rising(q_pos),
        consecutive=consecutive(q_pos, k_pos),
        padded=bool((q_pos < 0).any() or (k_pos < 0).any()),
    )


def rising(pos: Tensor) -> bool:
    rows = [[p for p in row if p >= 0] for row in pos.tolist()]
    return all(row == sorted(set(row)) for row in rows)


def consecutive(q_pos: Tensor, k_pos: Tensor) -> bool:
    """Consecutive positions in order, ending together, in every row."""
    for q_row, k_row in zip(q_pos.tolist(), k_pos.tolist(), strict=True):
        q, k = ([p for p in row if p >= 0] for row in (q_row, k_row))
        if any(row and row != list(range(row[0], row[0] + len(row))) for row in (q, k)) or (q and q[-1:] != k[-1:]):
            return False
    return True


# how long queries and keys are and where the padding is; -1 is an empty row or slot
SHAPES: dict[str, Callable[[], tuple[Tensor, Tensor]]] = {
    "prefill": lambda: (torch.arange(37).expand(2, -1), torch.arange(37).expand(2, -1)),
    "one-token": lambda: (torch.tensor([[44], [44]]), torch.arange(45).expand(2, -1)),
    "chunk-after-a-cache": lambda: (torch.arange(30, 43).expand(2, -1), torch.arange(43).expand(2, -1)),
    "window-cache": lambda: (torch.arange(100, 113).expand(2, -1), torch.arange(92, 113).expand(2, -1)),
    "left-padded": lambda: (_rows("...abcdefgh", "abcdefghijk"),) * 2,
    "right-padded": lambda: (_rows("abcdefgh...", "abcdefghijk"),) * 2,
    "padded-in-the-middle": lambda: (_rows("abc..defg.h", "a.bcdefghij"), _rows("abc..defg.h", "a.bcdefghij")),
    "left-padded-decode": lambda: (torch.tensor([[7], [10]]), _rows("...abcdefgh", "abcdefghijk")),
    "a-row-of-padding": lambda: (_rows("...........", "abcdefghijk"),) * 2,
    "positions-with-gaps": lambda: (torch.tensor([[3, 9, 40], [5, 6, 7]]), torch.arange(41).mul(2).expand(2, -1)),
}

# long enough for the tiles of GPU kernels
LONG: dict[str, Callable[[], tuple[Tensor, Tensor]]] = {
    "prefill": lambda: (torch.arange(301).expand(2, -1), torch.arange(301).expand(2, -1)),
    "one-token": lambda: (torch.tensor([[444], [444]]), torch.arange(445).expand(2, -1)),
    "chunk-after-a-cache": lambda: (torch.arange(300, 431).expand(2, -1), torch.arange(431).expand(2, -1)),
    "window-cache": lambda: (torch.arange(1000, 1131).expand(2, -1), torch.arange(937, 1131).expand(2, -1)),
    "left-padded": lambda: (_starts(301, 60, 0),) * 2,
    "left-padded-decode": lambda: (torch.tensor([[240], [300]]), _starts(301, 60, 0)),
    "a-row-of-padding": lambda: (_starts(301, 301, 0),) * 2,
    "padded-in-the-middle": lambda: (_gap(301, 40, 97),) * 2,
    "few-keys": lambda: (torch.arange(170, 301).expand(2, -1), _starts(11, 3, 0)),
}


def _starts(width: int, *pads: int) -> Tensor:
    return torch.stack([(torch.arange(width) - pad).clamp(min=-1) for pad in pads])


def _gap(width: int, start: int, end: int) -> Tensor:
    row = torch.arange(width)
    gap = torch.where(row < start, row, torch.where(row < end, -1, row - (end - start)))
    return torch.stack([gap, row])


def _rows(*rows: str) -> Tensor:
    """'..ab' -> [-1, -1, 0, 1]"""
    return torch.tensor([[-1 if c == "." else ord(c) - ord("a") for c in row] for row in rows])


def problem(
    shape: str,
    heads: int = 4,
    groups: int = 2,
    dim: int = 8,
    dtype: torch.dtype = torch.float32,
    device: str = "cpu",
    v_dim: int | None = None,
) -> Problem:
    q_pos, k_pos = (SHAPES if dim < 16 else LONG)[shape]()
    (B, L), S = q_pos.shape, k_pos.shape[1]
    generator = torch.Generator().manual_seed(L + S)

    def random(*size: int) -> Tensor:
        return torch.randn(*size, generator=generator, dtype=torch.float64).to(device, dtype)

    v_dim = v_dim or dim
    q, k, v = random(B, heads, L, dim) * 2, random(B, groups, S, dim), random(B, groups, S, v_dim)
    return Problem(q, k, v, q_pos.to(device), k_pos.to(device), random(B, L, heads, v_dim))


def visible_pairs(branch: Branch) -> Tensor:
    """Which pairs exist, (B, H, L, S)."""
    B, H, L, _ = branch.q_BHLD.shape
    S = branch.k_BGSD.shape[2]
    q, k = branch.positions.q_pos_BL[:, None, :, None], branch.positions.k_pos_BS[:, None, None, :]
    real = (q >= 0) & (k >= 0)
    if isinstance(branch.mask, TopBlocks):
        mask = torch.zeros(B, H, L, S, dtype=torch.bool, device=q.device)
        index, size = branch.mask.index_BHMK, branch.mask.k_size
        for b, h, m in itertools.product(*map(range, index.shape[:3])):
            heads = slice(None) if index.shape[1] == 1 else h
            rows = slice(m * branch.mask.q_size, (m + 1) * branch.mask.q_size)
            for block in index[b, h, m].tolist():
                mask[b, heads, rows, block * size : (block + 1) * size] |= block >= 0
        return mask & real & SEES[type(branch.mask.inside)](branch.mask.inside, q, k)
    if isinstance(branch.mask, TopKeys):
        index = branch.mask.index_BHLK.long().repeat_interleave(branch.mask.shared, 1)
        mask = torch.zeros(B, H, L, S + 1, dtype=torch.bool, device=index.device)
        return mask.scatter(-1, torch.where(index < 0, S, index), True)[..., :S]  # slot S takes the -1s
    return (SEES[type(branch.mask)](branch.mask, q, k) & real).expand(B, H, L, S)


def _chunks_back(mask: Chunk, q: Tensor, k: Tensor) -> Tensor:
    """By counting the chunks' beginnings between key and query."""
    latest = min(int(q.max()) + 1, 2000)  # padding among packed positions is far up
    begins = torch.tensor([p % mask.size == 0 for p in range(latest + 1)], device=q.device).cumsum(0)
    back = begins[q.clamp(0, latest)] - begins[k.clamp(0, latest)]
    return back >= mask.back if mask.earlier else back == mask.back


def truth(
    branches: list[Branch], scale: float, sink_H: Tensor | None = None, softcap: float | None = None
) -> tuple[Tensor, Tensor]:
    """Out (B, L, H, D) and log-sum-exp (B, H, L) of the softmax over all branches' keys, in float64, with gradients."""
    scores, values = [], []
    for branch in branches:
        group = branch.q_BHLD.shape[1] // branch.k_BGSD.shape[1]
        q = branch.q_BHLD.double()
        k, v = (x.double().repeat_interleave(group, 1) for x in (branch.k_BGSD, branch.v_BGSD))
        score = q @ k.mT * scale
        if softcap is not None:
            score = torch.tanh(score / softcap) * softcap
        if branch.bias is not None:
            score = score + biases(branch)
        if branch.lowered_BL is not None:
            score = score - branch.lowered_BL.double()[:, None, :, None]
        scores.append(score.masked_fill(~visible_pairs(branch), -math.inf))
        values.append(v)
    if sink_H is not None:  # a key without a value
        scores.append(sink_H.double()[:, None, None].expand_as(scores[0][..., :1]))
        values.append(torch.zeros_like(values[0][:, :, :1]))
    score, value = torch.cat(scores, -1), torch.cat(values, 2)
    lse = score.logsumexp(-1)
    weights = torch.exp(score - torch.where(lse == -math.inf, 0.0, lse.detach())[..., None])
    weights = weights / weights.sum(-1, keepdim=True).clamp(min=1e-300)
    return (weights @ value).transpose(1, 2), lse


def biases(branch: Branch) -> Tensor:
    """(B, H, L, S) in float64, from each pair's own distance; 0 where a pair does not exist."""
    assert branch.bias is not None
    weights, seen = branch.bias.weights.double(), visible_pairs(branch)
    rows = zip(branch.positions.q_pos_BL.tolist(), branch.positions.k_pos_BS.tolist(), strict=True)
    distance = torch.tensor([[[[q - k for k in k_row] for q in q_row]] for q_row, k_row in rows], device=seen.device)
    distance = distance.expand_as(seen).masked_fill(~seen, 0)
    if isinstance(branch.bias, DistanceBuckets):
        heads = torch.arange(seen.shape[1], device=seen.device)[:, None, None].expand_as(seen)
        return weights[heads, branch.bias.bucket(distance)] * seen
    return -weights[:, None, None] * distance


def selected(shape: str, k: int = 3, **kwargs: Any) -> tuple[Problem, TopKeys]:
    """A problem with k random distinct slots for every query and head, some of them -1."""
    p = problem(shape, **kwargs)
    B, H, L, _ = p.q.shape
    generator = torch.Generator().manual_seed(5)
    index = torch.rand(B, H, L, p.k.shape[2], generator=generator).argsort(-1)[..., :k]
    index[torch.rand(index.shape, generator=generator) < 0.3] = -1
    return p, TopKeys(index.to(p.q.device))


def gradients(out: Tensor, p: Problem) -> list[Tensor]:
    return list(torch.autograd.grad(out, [p.q, p.k, p.v], p.grad.to(out.dtype), retain_graph=True))


@dataclass(frozen=True)
class SameParity(Mask):
    """A mask that no kernel has heard of."""

    def pairs(self, q_pos_BL: Tensor, k_pos_BS: Tensor) -> Tensor:
        return (q_pos_BL[:, :, None] - k_pos_BS[:, None]) % 2 == 0

    def span(self, low: int, high: int) -> tuple[int, int]:
        return 0, ANY
