"""`Positions`: where queries and keys stand, and what is known about their order, as one value."""

# B batch, L queries, S keys
from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from torch import Tensor


@dataclass(frozen=True, eq=False)
class Positions:
    """True positions of queries and keys, int64, and what is known about their order. Nothing known is always right.

    Args:
        q_pos_BL: Positions of queries; -1: no such row (padding).
        k_pos_BS: Positions of keys; -1: no such slot (padding, an empty slot).
        same_rows: Queries and keys are the same tokens, in rising order: what a square causal kernel needs.
        consecutive: The real rows are consecutive positions in order, both queries and keys, ending together: what
            kernels need that know windows by index only.
        padded: Some position is -1. False lets kernels skip the check.
        memo: Kernels keep there what follows from positions alone. Shared by branches with the very same positions,
            such as those of the layers of one forward, and by no others.
    """

    q_pos_BL: Tensor
    k_pos_BS: Tensor
    same_rows: bool = False
    consecutive: bool = False
    padded: bool = True
    memo: dict[Any, Any] | None = None
