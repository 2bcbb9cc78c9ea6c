"""LM-Infinite as the paper writes it (Han et al. 2023, arXiv 2308.16137, section 3.2), pair by pair in float64.

Query i sees key j <= i iff `i - j < n_local` or `j < n_global`, at the distance min(i - j, n_local) (the paper's
ceiling L_pretrain, which is n_local here). From one layer on, every head and query may add its `top_k` best tokens
between the first ones and the window, each read at the distance n_local // 2. One softmax over all of it.
"""

# L length, D head dim, C rotary pairs: D / 2 unless some dims are not rotated
from __future__ import annotations

import math

import torch
from torch import Tensor


def inverse_frequencies(theta: float, dim: int) -> Tensor:
    """theta ** (-2 c / D) for c = 0 .. D/2 - 1"""
    return torch.tensor([theta ** (-2 * c / dim) for c in range(dim // 2)], dtype=torch.float64)


def rotated(x_D: Tensor, position: float, inv_freq_C: Tensor) -> Tensor:
    """R_position x: pair (x_c, x_{c + C}) turned by position * inv_freq_c (the layout of Llama's weights).

    Dims beyond 2 C are not rotated (GPT-NeoX).
    """
    half = len(inv_freq_C)
    a, b = x_D[:half], x_D[half : 2 * half]
    cos, sin = torch.cos(position * inv_freq_C), torch.sin(position * inv_freq_C)
    return torch.cat([a * cos - b * sin, b * cos + a * sin, x_D[2 * half :]])


def logit(q_D: Tensor, k_D: Tensor, distance: int, inv_freq_C: Tensor) -> Tensor:
    """The score of a query and a key that stand `distance` apart."""
    return rotated(q_D, distance, inv_freq_C) @ k_D / math.sqrt(len(q_D))


def attention_of_one_head(
    q_LD: Tensor, k_LD: Tensor, v_LD: Tensor, inv_freq_C: Tensor, n_global: int, n_local: int, top_k: int = 0
) -> Tensor:
    """Two Python loops over the pairs (i, j): slow, and nothing to get wrong."""
    rows = []
    for i in range(len(q_LD)):
        keys, scores = [], []
        middle: list[tuple[float, int]] = []
        for j in range(i + 1):
            if i - j < n_local or j < n_global:
                keys.append(j)
                scores.append(logit(q_LD[i], k_LD[j], min(i - j, n_local), inv_freq_C))
            else:
                middle.append((float(logit(q_LD[i], k_LD[j], n_local // 2, inv_freq_C)), j))
        for _, j in sorted(middle, reverse=True)[:top_k]:
            keys.append(j)
            scores.append(logit(q_LD[i], k_LD[j], n_local // 2, inv_freq_C))
        rows.append(torch.softmax(torch.stack(scores), 0) @ v_LD[keys])
    return torch.stack(rows)


def scores_at(q_LD: Tensor, k_LD: Tensor, distance_LL: Tensor, inv_freq_C: Tensor) -> Tensor:
    """`logit` for all pairs at once, every pair at its own distance: Re(q conj(k) exp(i distance inv_freq))."""
    half = len(inv_freq_C)
    q, k = (torch.complex(x[:, :half], x[:, half : 2 * half]) for x in (q_LD, k_LD))
    angle_LLC = distance_LL[..., None] * inv_freq_C
    turned = torch.polar(torch.ones_like(angle_LLC), angle_LLC)
    scores = (q[:, None] * k[None].conj() * turned).real.sum(-1) + q_LD[:, 2 * half :] @ k_LD[:, 2 * half :].T
    return scores / math.sqrt(q_LD.shape[1])


def attention_all_pairs(
    q_LD: Tensor, k_LD: Tensor, v_LD: Tensor, inv_freq_C: Tensor, n_global: int, n_local: int, top_k: int = 0
) -> Tensor:
    """The same with a matrix of pairs, for whole models."""
    L = len(q_LD)
    i, j = torch.arange(L)[:, None], torch.arange(L)[None]
    visible = (j <= i) & ((i - j < n_local) | (j < n_global))
    scores = scores_at(q_LD, k_LD, (i - j).clamp(min=0, max=n_local), inv_freq_C)
    if top_k:
        halfway = scores_at(q_LD, k_LD, torch.full((L, L), n_local // 2), inv_freq_C)
        middle = (j <= i) & ~visible
        best = halfway.detach().masked_fill(~middle, -math.inf).topk(min(top_k, L), dim=-1).indices
        chosen = torch.zeros(L, L, dtype=torch.bool).scatter(1, best, True) & middle
        scores, visible = torch.where(chosen, halfway, scores), visible | chosen
    return torch.softmax(scores.masked_fill(~visible, -math.inf), -1) @ v_LD
