"""Kernels that do all branches of a softmax at once."""

# B batch, H query heads, L queries, D head dim
from __future__ import annotations

from typing import ClassVar

from torch import Tensor

from ..bias import Bias
from ..branch import Branch
from ..masks import Mask


class FusedKernel:
    """A kernel that computes all branches of one softmax at once, and has no gradients."""

    name: ClassVar[str]
    masks: ClassVar[tuple[type[Mask], ...]]
    biases: ClassVar[tuple[type[Bias], ...]] = ()

    def unsupported_reason(self, branches: list[Branch], softcap: float | None = None) -> str | None:
        """Why this kernel cannot do these branches; None if it can."""
        raise NotImplementedError

    def forward(
        self, branches: list[Branch], scale: float, softcap: float | None = None, sink_H: Tensor | None = None
    ) -> tuple[Tensor, Tensor]:
        """Compute out (B, L, H, D) and lse (B, H, L) of the union of the branches, with the sink."""
        raise NotImplementedError
