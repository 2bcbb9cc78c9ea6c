"""Attention of a few tokens, at any places of one long text, to everything before each: for a CUDA graph.

What each sees follows from positions, which are data, not from shapes: the same recorded kernels serve every edit.
"""

# H query heads, G key/value heads, L queries, S columns of the keys, D head dim
from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from .widths import widened


@dataclass
class Places:
    """Where the queries stand, as a tensor that may be filled again between two runs.

    Attributes:
        pos_L: Positions, rising; the keys of column s are those of position s.
        unused: Where queries that are left over stand: a column of no text. They see nothing.
    """

    pos_L: Tensor
    unused: int

    def fill(self, positions: NDArray[np.int64]) -> None:
        """Positions, rising, of as many queries; on the host, without threads: see `editing/difference.py`."""
        pos_L = self.pos_L.numpy()
        pos_L[: len(positions)], pos_L[len(positions) :] = positions, self.unused


def attend(q_HLD: Tensor, k_GSD: Tensor, v_GSD: Tensor, places: Places, scale: float) -> Tensor:
    """(L, H, D of the values): each query over the keys up to its own, which are in `k` and `v` already."""
    if q_HLD.is_cuda:
        from .kernels import triton_places

        width, dim = max(q_HLD.shape[-1], v_GSD.shape[-1]), v_GSD.shape[-1]
        q, k, v = (widened(x, width) for x in (q_HLD, k_GSD, v_GSD))
        return triton_places.attend(q, k, v, places.pos_L, places.unused, scale)[..., :dim]
    columns = torch.arange(k_GSD.shape[1])
    pos_L1 = places.pos_L[:, None]
    seen_LS = (columns <= pos_L1) & (pos_L1 != places.unused)
    k, v = (x.float().repeat_interleave(len(q_HLD) // len(x), 0) for x in (k_GSD, v_GSD))
    score_HLS = (q_HLD.float() @ k.transpose(-1, -2) * scale).masked_fill(~seen_LS, float("-inf"))
    return (score_HLS.softmax(-1).nan_to_num() @ v).transpose(0, 1).to(q_HLD.dtype)
