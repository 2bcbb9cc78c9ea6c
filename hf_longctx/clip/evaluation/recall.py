"""R@k both ways, with one or several captions for an image."""

# I images, C captions, D width
from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

KS = (1, 5, 10)
_BLOCK = 4096  # rows scored at once: 31,000 images against 155,000 captions are 19 GB otherwise


@dataclass(frozen=True)
class Recall:
    """Shares, 0 to 1, by k.

    Args:
        text_to_image: Of captions whose image is among the k nearest.
        image_to_text: Of images that have one of their captions among the k nearest.
        images, captions: How many took part.
    """

    text_to_image: dict[int, float]
    image_to_text: dict[int, float]
    images: int
    captions: int


def recall(images: Tensor, captions: Tensor, image_of: Tensor | None = None, ks: Sequence[int] = KS) -> Recall:
    """R@k of normalised embeddings, both ways.

    Args:
        images: [I, D].
        captions: [C, D].
        image_of: [C], the row of each caption's image; by default caption i belongs to image i.
        ks: Cut-offs.

    Raises:
        ValueError: Shapes that do not fit, or an image without a caption.
    """
    owner = _owner(images, captions, image_of)
    if not ks or any(isinstance(k, bool) or not isinstance(k, int) or k < 1 for k in ks):
        raise ValueError(f"ks={tuple(ks)}: expected whole numbers from 1 on, such as {KS}.")
    to_image = _ranks(captions, images, owner)
    # an image's rank is that of its nearest caption
    to_text = torch.full((images.shape[0],), captions.shape[0], device=images.device)
    for rows in torch.arange(images.shape[0], device=images.device).split(_BLOCK):
        scores = images[rows] @ captions.T
        own = owner[None, :] == rows[:, None]
        best = scores.masked_fill(~own, -torch.inf).amax(1, keepdim=True)
        to_text[rows] = ((scores >= best) & ~own).sum(1)
    return Recall(
        {k: float((to_image < k).double().mean()) for k in ks},
        {k: float((to_text < k).double().mean()) for k in ks},
        images.shape[0],
        captions.shape[0],
    )


def found(images: Tensor, captions: Tensor, image_of: Tensor | None = None, k: int = 1) -> Tensor:
    """[C] booleans: whether each caption's image is among its k nearest. What `by_bins` takes."""
    return _ranks(captions, images, _owner(images, captions, image_of)) < k


def _ranks(captions: Tensor, images: Tensor, owner: Tensor) -> Tensor:
    """How many other images are at least as near: a tie is no hit, so that equal embeddings score 0, not 1."""
    ranks = []
    for rows in torch.arange(captions.shape[0], device=captions.device).split(_BLOCK):
        scores = captions[rows] @ images.T
        own = scores.gather(1, owner[rows, None])
        ranks.append((scores >= own).sum(1) - 1)
    return torch.cat(ranks)


def _owner(images: Tensor, captions: Tensor, image_of: Tensor | None) -> Tensor:
    if images.ndim != 2 or captions.ndim != 2 or images.shape[1] != captions.shape[1] or not len(images):
        raise ValueError(
            f"images {list(images.shape)} and captions {list(captions.shape)}: expected [count, width] twice, with "
            f"the same width and at least one row."
        )
    if not (torch.isfinite(images).all() and torch.isfinite(captions).all()):
        raise ValueError("the embeddings have values that are not finite. Evaluate in float32 or bfloat16.")
    if image_of is None:
        if len(images) != len(captions):
            raise ValueError(
                f"{len(images)} images and {len(captions)} captions: say with image_of which image each belongs to."
            )
        return torch.arange(len(images), device=images.device)
    owner = image_of.to(images.device)
    if owner.shape != (len(captions),) or owner.is_floating_point() or owner.min() < 0 or owner.max() >= len(images):
        raise ValueError(
            f"image_of: expected {len(captions)} whole numbers from 0 to {len(images) - 1}, a row of `images` for each "
            f"caption."
        )
    without = len(images) - len(owner.unique())
    if without:
        raise ValueError(f"{without} of {len(images)} images have no caption. Leave them out, or caption them.")
    return owner
