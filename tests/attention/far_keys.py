"""Queries and keys to look up in, and the query heads that share a table."""

# B rows, H query heads, G key/value heads, S keys, D head dim
from __future__ import annotations

import torch
from torch import Tensor

from hf_longctx.cache import KeyValues

B, H, G, S, D, FIRST, NEAR = 2, 6, 2, 61, 8, 3, 7


def problem(padded: bool) -> tuple[Tensor, KeyValues]:
    """Queries at the positions of the keys. Padding, at the left of a row and inside of one, has keys of nan."""
    random = torch.Generator().manual_seed(5)
    q, k = torch.randn(B, H, S, D, generator=random), torch.randn(B, G, S, D, generator=random)
    pos = torch.arange(S).expand(B, -1).clone()
    if padded:
        pos[0, :9], pos[0, 9:] = -1, torch.arange(S - 9)
        pos[1, 20:31], pos[1, 31:] = -1, torch.arange(20, S - 11)
        k = torch.where((pos < 0)[:, None, :, None], float("nan"), k)
    return q, KeyValues(k, k.clone(), pos)


def sharing(per: str) -> list[list[int]]:
    """The query heads of each table."""
    return [[g * (H // G) + r for r in range(H // G)] for g in range(G)] if per == "group" else [[h] for h in range(H)]
