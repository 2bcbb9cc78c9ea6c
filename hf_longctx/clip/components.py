"""Primary components of a batch of embeddings, which a short caption should match (Long-CLIP, section 3.3)."""

# B images of the batch, D width, K components
from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from ..settings import is_whole

COMPONENTS = 32  # the published code's


def primary_components(features: Tensor, components: int = COMPONENTS) -> Tensor:
    """`features` without all but the batch's strongest directions of variance; the mean stays.

    The paper's F, E and filter in one: a principal component analysis of the batch, of which the first `components`
    directions are kept. The result is not normalised again, as in the published code.

    Args:
        features: [B, D], embeddings of one batch.
        components: K, below B - 1 and D.

    Returns:
        [B, D] in the dtype of `features`. The gradient includes the directions; if the K-th and the next variance are
        equal, they are undetermined, and the gradient is bounded there, not exact.

    Raises:
        ValueError: Fewer than K + 2 rows, or as many components as columns: nothing would be removed.
    """
    if features.ndim != 2 or not features.is_floating_point():
        raise ValueError(f"features {list(features.shape)}, {features.dtype}: expected floating-point [batch, width].")
    if not is_whole(components):
        raise ValueError(f"components={components!r}: expected a whole number from 1 on. The paper's is {COMPONENTS}.")
    rows, width = features.shape
    if rows < components + 2 or width <= components:
        raise ValueError(
            f"a batch of {rows} embeddings of width {width} has at most {max(0, min(rows - 1, width))} directions of "
            f"variance, so {components} primary components would leave everything in. Give at least "
            f"{components + 2} pairs per process, gather before the analysis (gathered=True), or ask for fewer."
        )
    exact = features if features.dtype == torch.float64 else features.float()
    with torch.autocast(features.device.type, enabled=False):
        mean = exact.mean(0, keepdim=True)
        centred = exact - mean
        projector: Tensor = _Projector.apply(centred.T @ centred, components)
        return (centred @ projector + mean).to(features.dtype)


class _Projector(torch.autograd.Function):
    """[D, D] symmetric to the projector on its K strongest eigenvectors.

    Autograd through an eigendecomposition divides by the distance of *every* two eigenvalues, and breaks if two are
    close; a projector depends only on the distances between kept and dropped ones.
    """

    @staticmethod
    def forward(ctx: Any, matrix: Tensor, components: int) -> Tensor:
        values, vectors = torch.linalg.eigh(matrix)  # ascending
        ctx.save_for_backward(values, vectors)
        ctx.components = components
        kept = vectors[:, -components:]
        return kept @ kept.T

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor, None]:
        values, vectors = ctx.saved_tensors
        split = values.shape[0] - ctx.components
        dropped, kept = vectors[:, :split], vectors[:, split:]
        distance = values[None, split:] - values[:split, None]
        distance = distance.clamp(min=torch.finfo(values.dtype).eps * float(values.shape[0]) * values[-1].abs())
        with torch.autocast(values.device.type, enabled=False):
            grad = grads[0] + grads[0].T
            inner = (dropped.T @ grad @ kept) / distance  # [D - K, K]
            half = dropped @ inner @ kept.T
        return (half + half.T) / 2, None
