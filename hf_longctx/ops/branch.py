"""`Branch`: some keys and values, where queries and keys are read, and which pairs exist."""

# B batch, H query heads, G key/value heads, L queries, S keys, D head dim
from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from torch import Tensor

from .masks import Mask, TopKeys, pairs
from .rotation import Rotation


@dataclass(frozen=True)
class Branch:
    """Some keys and values, where queries and keys are read, and which pairs exist.

    Args:
        q_BHLD, k_BGSD, v_BGSD: queries, keys, values; H is a multiple of G.
        q_pos_BL, k_pos_BS: true positions, int64; -1: no such row or slot (padding, an empty slot).
        visible: which (query, key) pairs are in this branch, by true position.
        q_rope, k_rope: the rotations that put queries and keys where they are read. None: they are right already.
        regular: the real rows are consecutive positions in order, both queries and keys, ending together; kernels
            that know windows only by index need it.
        padded: some position is -1. False lets kernels skip the check.
        memo: kernels keep there what follows from positions alone. Shared by branches with the very same positions,
            such as those of the layers of one forward, and by no others.
    """

    q_BHLD: Tensor
    k_BGSD: Tensor
    v_BGSD: Tensor
    q_pos_BL: Tensor
    k_pos_BS: Tensor
    visible: Mask
    q_rope: Rotation | None = None
    k_rope: Rotation | None = None
    regular: bool = False
    padded: bool = True
    memo: dict[Any, Any] | None = None

    def pairs(self) -> Tensor:
        """The visible pairs as a (B, L, S) mask: the readable definition, O(L S) memory."""
        assert not isinstance(self.visible, TopKeys)
        return pairs(self.visible, self.q_pos_BL, self.k_pos_BS)
