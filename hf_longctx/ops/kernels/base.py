"""The one signature of every kernel."""

# B batch, H query heads, G key/value heads, L queries, S keys, D head dim
from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Protocol

from torch import Tensor

from ..masks import Mask, TopKeys


@dataclass(frozen=True, eq=False)
class Call:
    """What a kernel must know besides q, k and v; the fields are those of `Branch`."""

    q_pos_BL: Tensor
    k_pos_BS: Tensor
    visible: Mask
    scale: float
    regular: bool
    padded: bool
    memo: dict[Any, Any] | None = None

    @property
    def is_selected(self) -> bool:
        return isinstance(self.visible, TopKeys)


class Kernel(Protocol):
    """A kernel computes one branch: its part of the output, normalised on its own, and its log-sum-exp.

    The log-sum-exp is fp32 (fp64 for fp64 inputs), -inf where a row has no key; the output is 0 there.
    `backward` gets the output and log-sum-exp of the *whole* softmax, and returns this branch's share of dq and its
    dk and dv.
    """

    name: str
    summary: str

    def refuses(self, call: Call, q_BHLD: Tensor, k_BGSD: Tensor) -> str | None:
        """Why this kernel cannot do the call; None if it can."""

    def forward(self, call: Call, q_BHLD: Tensor, k_BGSD: Tensor, v_BGSD: Tensor) -> tuple[Tensor, Tensor]:
        """-> out (B, L, H, D), lse (B, H, L)"""

    def backward(
        self, call: Call, grad_BLHD: Tensor, q: Tensor, k: Tensor, v: Tensor, out_BLHD: Tensor, lse_BHL: Tensor
    ) -> list[Tensor]:
        """-> [dq (B, H, L, D), dk (B, G, S, D), dv (B, G, S, D)]"""
