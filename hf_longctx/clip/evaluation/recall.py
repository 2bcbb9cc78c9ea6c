"""R@k both ways, with one or several captions for an image; and shares of hits by a quantity of the caption."""

# I images, C captions, D width
from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from ...settings import is_whole

KS = (1, 5, 10)
_BLOCK = 4096  # rows scored at once: 31,000 images against 155,000 captions are 19 GB otherwise


@dataclass(frozen=True)
class Recall:
    """Shares, 0 to 1, by k: of captions whose image, and of images with a caption, is among the k nearest."""

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
    if not ks or not all(is_whole(k) for k in ks):
        raise ValueError(f"ks={tuple(ks)}: expected whole numbers from 1 on, such as {KS}.")
    # an image's rank is that of its nearest caption
    to_text = torch.full((images.shape[0],), captions.shape[0], device=images.device)
    for rows in torch.arange(images.shape[0], device=images.device).split(_BLOCK):
        scores = images[rows] @ captions.T
        own = owner[None, :] == rows[:, None]
        best = scores.masked_fill(~own, -torch.inf).amax(1, keepdim=True)
        to_text[rows] = ((scores >= best) & ~own).sum(1)
    return Recall(shares(ranks(captions, images, owner), ks), shares(to_text, ks), len(images), len(captions))


def found(images: Tensor, captions: Tensor, image_of: Tensor | None = None, k: int = 1) -> Tensor:
    """[C] booleans, for `by_bins`: whether each caption's image is among its k nearest."""
    return ranks(captions, images, _owner(images, captions, image_of)) < k


def ranks(queries: Tensor, items: Tensor, owner: Tensor) -> Tensor:
    """The number of other items at least as near as a query's own: a tie is no hit, so equal embeddings score 0."""
    found = []
    for block, own in zip(queries.split(_BLOCK), owner.split(_BLOCK), strict=True):
        scores = block @ items.T
        found.append((scores >= scores.gather(1, own[:, None])).sum(1) - 1)
    return torch.cat(found)


def shares(rank: Tensor, ks: Sequence[int]) -> dict[int, float]:
    """The share of ranks below each k."""
    return {k: float((rank < k).double().mean()) for k in ks}


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
                f"{len(images)} images and {len(captions)} captions: give image_of, the image of each caption."
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
