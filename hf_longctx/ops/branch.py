"""`Branch`: some keys and values, where queries and keys are read, and which pairs exist."""

# B batch, H query heads, G key/value heads, L queries, S keys, D head dim
from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor

from .bias import Bias
from .masks import Mask
from .positions import Positions
from .rotation import Rotation


@dataclass(frozen=True, eq=False)
class Branch:
    """Some keys and values, where queries and keys are read, and which pairs exist.

    Args:
        q_BHLD: Queries; H is a multiple of G.
        k_BGSD: Keys.
        v_BGSD: Values.
        positions: True positions of queries and keys.
        mask: Which (query, key) pairs are in this branch.
        q_rope: The rotation that puts queries where they are read. None: they are right already.
        k_rope: The same for keys.
        bias: Added to the scaled scores.
        lowered_BL: What is taken from all scores of a query in this branch, after any cap. None: nothing.
        done: Its output (B, L, H, D) and log-sum-exp (B, H, L), where `attend` need not compute them, and may write
            over them. See `attended`.
    """

    q_BHLD: Tensor
    k_BGSD: Tensor
    v_BGSD: Tensor
    positions: Positions
    mask: Mask
    q_rope: Rotation | None = None
    k_rope: Rotation | None = None
    bias: Bias | None = None
    lowered_BL: Tensor | None = None
    done: tuple[Tensor, Tensor] | None = None
