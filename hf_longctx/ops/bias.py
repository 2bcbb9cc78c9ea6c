"""What is added to scores, by distance: slopes (ALiBi), or a table with an entry for each bucket of distances (T5)."""

# B batch, H query heads, L queries, S keys, N buckets
from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace

import torch
from torch import Tensor


@dataclass(frozen=True, eq=False)
class Bias:
    """Added to the scaled scores of a branch. A new one needs `__call__`; its gradient comes from autograd.

    Args:
        weights: What the bias is made of; may require a gradient.
    """

    weights: Tensor

    def __call__(self, distance_BLS: Tensor) -> Tensor:
        """(B, H, L, S) from the distances query minus key; those of pairs that do not exist are 0."""
        raise NotImplementedError

    def gradient(self, distance_BLS: Tensor, grad_BHLS: Tensor) -> Tensor:
        """The gradient of `weights`, in the precision of the scores' gradient."""
        with torch.enable_grad():
            leaf = self.weights.detach().to(grad_BHLS.dtype).requires_grad_()
            return torch.autograd.grad(replace(self, weights=leaf)(distance_BLS), leaf, grad_BHLS)[0]


class DistanceSlopes(Bias):
    """ALiBi (Press et al. 2022): `-slope * distance`, `weights` holding a slope (H,) for each head."""

    def __call__(self, distance_BLS: Tensor) -> Tensor:
        """See `Bias`."""
        return -self.weights[:, None, None] * distance_BLS[:, None]


@dataclass(frozen=True, eq=False)
class DistanceBuckets(Bias):
    """T5 (Raffel et al. 2020) and relative tables: `weights` (H, N) hold a number for each bucket of distances.

    Args:
        weights: The table.
        bucket: From distances (any shape, int64) to the numbers of their buckets, 0 to N - 1.
    """

    bucket: Callable[[Tensor], Tensor]

    def __call__(self, distance_BLS: Tensor) -> Tensor:
        """See `Bias`."""
        return self.weights[:, self.bucket(distance_BLS)].transpose(0, 1)
