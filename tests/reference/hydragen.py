"""Hydragen as the paper writes it (Juravsky et al. 2024, arXiv 2402.05099, section 3), in float64.

Section 3.1: softmax attention over the concatenation of two sets of keys is the sum of both outputs, weighted by their
exp(LSE). Section 3.2: all sequences see the same prefix, so their queries are one long batch for it, and its keys are
stored once.
"""

# B sequences, H query heads, G key/value heads, L queries, P tokens of the prefix, S of a suffix, D head dim
from __future__ import annotations

import math
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor
from transformers.masking_utils import ALL_MASK_ATTENTION_FUNCTIONS
from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS

NAME = "hydragen_reference"


def attention(q_LD: Tensor, k_SD: Tensor, v_SD: Tensor, visible_LS: Tensor) -> tuple[Tensor, Tensor]:
    """(L, D), the softmax attention over one set of keys, and (L,), its log-sum-exp."""
    scores = (q_LD @ k_SD.T / math.sqrt(q_LD.shape[1])).masked_fill(~visible_LS, -math.inf)
    lse_L = scores.logsumexp(-1)
    return torch.exp(scores - lse_L[:, None]) @ v_SD, lse_L


def combined(out_LD: Tensor, lse_L: Tensor, other_LD: Tensor, other_lse_L: Tensor) -> Tensor:
    """Equation 6: the attention over both sets of keys."""
    one, two = torch.exp(lse_L)[:, None], torch.exp(other_lse_L)[:, None]
    return (out_LD * one + other_LD * two) / (one + two)


def shared_prefix_attention(q_BLD: Tensor, k_PD: Tensor, v_PD: Tensor, k_BSD: Tensor, v_BSD: Tensor) -> Tensor:
    """One head, (B, L, D): the queries are the last L tokens of their suffixes, which are causal."""
    B, L, D = q_BLD.shape
    S = k_BSD.shape[1]
    prefix_out, prefix_lse = attention(q_BLD.reshape(B * L, D), k_PD, v_PD, torch.ones(B * L, len(k_PD), dtype=bool))
    causal_LS = torch.arange(S) <= torch.arange(S - L, S)[:, None]
    rows = []
    for b in range(B):
        part = slice(b * L, (b + 1) * L)
        out, lse = attention(q_BLD[b], k_BSD[b], v_BSD[b], causal_LS)
        rows.append(combined(prefix_out[part], prefix_lse[part], out, lse))
    return torch.stack(rows)


@contextmanager
def by_brute_force(model: Any, prefix: int) -> Iterator[Any]:
    """Inside, a stock model attends so to rows that begin with the same `prefix` tokens. No padding, no cache."""

    def function(
        module: Any, query: Tensor, key: Tensor, value: Tensor, mask: Any, scaling: float, **kwargs: Any
    ) -> tuple[Tensor, None]:
        query = query.double() * (scaling * math.sqrt(query.shape[-1]))
        heads = []
        for h in range(query.shape[1]):
            g = h * key.shape[1] // query.shape[1]
            q, k, v = query[:, h], key[:, g].double(), value[:, g].double()
            causal = torch.ones(prefix, prefix, dtype=bool).tril()
            own = torch.stack([attention(row, k[0, :prefix], v[0, :prefix], causal)[0] for row in q[:, :prefix]])
            shared = k[0, :prefix], v[0, :prefix]
            rest = shared_prefix_attention(q[:, prefix:], *shared, k[:, prefix:], v[:, prefix:])
            heads.append(torch.cat([own, rest], 1))
        return torch.stack(heads, 2).to(value.dtype), None

    before = model.config._attn_implementation
    ALL_ATTENTION_FUNCTIONS[NAME] = function
    ALL_MASK_ATTENTION_FUNCTIONS[NAME] = lambda *args, **kwargs: None
    model.config._attn_implementation = NAME
    try:
        yield model
    finally:
        model.config._attn_implementation = before
        del ALL_ATTENTION_FUNCTIONS[NAME]
        del ALL_MASK_ATTENTION_FUNCTIONS[NAME]
