"""Attention of a few tokens, at any places of one long text, to all that stands before each: for a CUDA graph.

What is seen follows from positions, which are data, not from shapes: the same recorded kernels serve every edit.
"""

# H query heads, G key/value heads, L queries, S columns of the keys, D head dim
from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from transformers import AttentionInterface

NAME = "longctx_few_queries"


@dataclass
class Places:
    """Where the queries stand, as a tensor that may be filled anew between two runs.

    Attributes:
        pos_L: positions, rising; the keys of column s are those of position s.
        unused: where queries that are left over stand: a column of no text. They see nothing.
    """

    pos_L: Tensor
    unused: int

    def fill(self, positions: NDArray[np.int64]) -> None:
        """Positions, rising, of as many queries; on the host, without threads: see `cache/difference.py`."""
        pos_L = self.pos_L.numpy()
        pos_L[: len(positions)], pos_L[len(positions) :] = positions, self.unused


def attend(q_HLD: Tensor, k_GSD: Tensor, v_GSD: Tensor, places: Places, scale: float) -> Tensor:
    """(L, H, D): each query over the keys up to its own, which are in `k` and `v` already."""
    if q_HLD.is_cuda:
        from .kernels import triton_places

        return triton_places.attend(q_HLD, k_GSD, v_GSD, places.pos_L, places.unused, scale)
    columns = torch.arange(k_GSD.shape[1])
    pos_L1 = places.pos_L[:, None]
    seen_LS = (columns <= pos_L1) & (pos_L1 != places.unused)
    k, v = (x.float().repeat_interleave(len(q_HLD) // len(x), 0) for x in (k_GSD, v_GSD))
    score_HLS = (q_HLD.float() @ k.transpose(-1, -2) * scale).masked_fill(~seen_LS, float("-inf"))
    return (score_HLS.softmax(-1).nan_to_num() @ v).transpose(0, 1).to(q_HLD.dtype)


_places: list[Places] = []  # of the forward that runs inside `using`


class using:
    """`with using(tower, places):` lets the tower's layers attend through `attend`. For one row of tokens."""

    def __init__(self, tower: Any, places: Places) -> None:
        self.config, self.places = tower.config, places

    def __enter__(self) -> None:
        _places.append(self.places)
        self.before = vars(self.config)["_attn_implementation_internal"]
        vars(self.config)["_attn_implementation_internal"] = NAME

    def __exit__(self, *error: object) -> None:
        vars(self.config)["_attn_implementation_internal"] = self.before
        _places.pop()


def attention(
    module: Any, query: Tensor, key: Tensor, value: Tensor, attention_mask: Tensor | None, scaling: float, **kwargs: Any
) -> tuple[Tensor, None]:
    """The attention function of transformers' interface."""
    if attention_mask is not None or kwargs.get("softcap") is not None or kwargs.get("s_aux") is not None:
        raise ValueError(f"{type(module).__name__}: it attends with more than queries, keys and values.")
    return attend(query[0], key[0], value[0], _places[-1], scaling)[None], None


# and no mask of that name: transformers then makes none
AttentionInterface.register(NAME, attention)
