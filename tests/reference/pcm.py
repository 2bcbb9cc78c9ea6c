"""Long-CLIP's loss as the paper and its code write it (Zhang et al. 2024, section 3.3), on all processes' batches.

F: the principal component analysis of one batch; E and its inverse: the coordinates of its strongest `k` directions and
back. Nothing here knows of gathering: a process is one entry of a list.
"""

# B pairs of a process, P processes, d width
from __future__ import annotations

import torch
from torch import Tensor


def principal_part(I: Tensor, k: int) -> Tensor:
    """I_s = mu + (I - mu) V_k V_k^T with V of the singular value decomposition."""
    mu = I.mean(0, keepdim=True)
    _, _, Vt = torch.linalg.svd(I - mu, full_matrices=False)
    P = Vt.T[:, :k]
    return (I - mu) @ P @ P.T + mu


def cross_entropy(logits: Tensor, y: int, eps: float) -> Tensor:
    """-sum_j q_j log p_j with q = (1 - eps) [j = y] + eps / n."""
    log_p = logits - logits.exp().sum().log()
    return -((1 - eps) * log_p[y] + eps * log_p.mean())


def both_ways(images: list[Tensor], texts: list[Tensor], rank: int, s: float, eps: float) -> Tensor:
    """The loss of one process' pairs among all."""
    I, T = torch.cat(images), torch.cat(texts)
    B = images[rank].shape[0]
    total = I.new_zeros(())
    for b in range(B):
        y = rank * B + b
        total = total + cross_entropy(s * T @ I[y], y, eps) / 2 + cross_entropy(s * I @ T[y], y, eps) / 2
    return total / B


def loss(
    images: list[Tensor], long: list[Tensor], short: list[Tensor], s: float, *, k: int, eps: float = 0.0,
    gathered: bool = False,
) -> list[Tensor]:  # fmt: skip
    """Every process' loss: long + short, 1 : 1."""
    if gathered:
        main = list(principal_part(torch.cat(images), k).split([len(one) for one in images]))
    else:
        main = [principal_part(one, k) for one in images]
    return [both_ways(images, long, rank, s, eps) + both_ways(main, short, rank, s, eps) for rank in range(len(images))]
