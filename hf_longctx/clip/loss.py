"""The loss of Long-CLIP: long captions against images, short ones against the images' primary components.

from hf_longctx.clip import long_clip_loss
loss = long_clip_loss(images, long_captions, short_captions, model.logit_scale.exp())
loss.total.backward()
"""

# B pairs on this process, A pairs on all processes, D width
from __future__ import annotations

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from .components import COMPONENTS, primary_components
from .gather import gather_rows, own_rows


@dataclass(frozen=True)
class LongClipLoss:
    """Scalars of this process' rows; training calls `total.backward()`."""

    total: Tensor
    long: Tensor
    short: Tensor


def contrastive_loss(images: Tensor, texts: Tensor, scale: Tensor | float, *, label_smoothing: float = 0.0) -> Tensor:
    """CLIP's loss of this process' pairs among those of all processes, both ways; a scalar.

    Args:
        images: [B, D], normalised, the same number on every process.
        texts: [B, D], as `images`; row i belongs to image i.
        scale: The factor of the similarities: `model.logit_scale.exp()`.
        label_smoothing: The share of a target that is spread over all pairs.
    """
    _check(images, texts)
    every_image, every_text = gather_rows(images), gather_rows(texts)
    return _both_ways(images, texts, every_image, every_text, scale, label_smoothing)


def long_clip_loss(
    images: Tensor,
    long: Tensor,
    short: Tensor,
    scale: Tensor | float,
    *,
    components: int = COMPONENTS,
    gathered: bool = False,
    short_weight: float = 1.0,
    label_smoothing: float = 0.0,
) -> LongClipLoss:
    """Primary component matching (Zhang et al. 2024, https://arxiv.org/abs/2403.15378, section 3.3).

    Long captions are matched with the images, short ones with the batch's primary components of the images, so that an
    image need not forget its details to agree with a short caption. Embeddings are gathered, with gradient, if
    torch.distributed (accelerate, DDP) runs on several processes.

    Args:
        images: [B, D], normalised embeddings of this process' pairs, the same number on every process.
        long: [B, D], of their long captions.
        short: [B, D], of their short captions.
        scale: The factor of the similarities: `model.logit_scale.exp()`.
        components: The number of primary components that short captions are matched with.
        gathered: Analyse the pairs of all processes together. The published code analyses each process' own.
        short_weight: The weight of the short captions' part; the paper's is 1.
        label_smoothing: The paper has none; the published code has 0.1.

    Raises:
        ValueError: Shapes that do not fit, or a batch too small for `components` (`primary_components`).
    """
    _check(images, long)
    _check(images, short)
    every_image = gather_rows(images)
    if gathered:
        every_main = primary_components(every_image, components)
        main = every_main[own_rows(images.shape[0], images.device)]
    else:
        main = primary_components(images, components)
        every_main = gather_rows(main)
    of_long = _both_ways(images, long, every_image, gather_rows(long), scale, label_smoothing)
    of_short = _both_ways(main, short, every_main, gather_rows(short), scale, label_smoothing)
    return LongClipLoss(of_long + short_weight * of_short, of_long, of_short)


def _both_ways(
    images: Tensor, texts: Tensor, every_image: Tensor, every_text: Tensor, scale: Tensor | float, smoothing: float
) -> Tensor:
    target = own_rows(images.shape[0], images.device)
    # in half precision, near-duplicates at a scale of 100 would fall on one value
    with torch.autocast(images.device.type, enabled=False):
        wide = torch.promote_types(images.dtype, torch.float32)
        to_text = scale * images.to(wide) @ every_text.to(wide).T
        to_image = scale * texts.to(wide) @ every_image.to(wide).T
        one = F.cross_entropy(to_text, target, label_smoothing=smoothing)
        return (one + F.cross_entropy(to_image, target, label_smoothing=smoothing)) / 2


def _check(images: Tensor, texts: Tensor) -> None:
    if images.ndim != 2 or images.shape != texts.shape:
        raise ValueError(
            f"embeddings of images {list(images.shape)} and of captions {list(texts.shape)}: expected the same "
            f"[batch, width] twice, a caption for each image."
        )
    if images.shape[0] < 2:
        raise ValueError("a batch of 1 pair has nothing to compare it with. Give at least 2, better hundreds.")
