"""LongAlign's preference score for long captions, decomposed (https://arxiv.org/abs/2410.11817), and its loss.

A CLIP tuned to preferences (the paper's Denscore, PickScore) embeds every segment of a caption. Their mean is compared
with the image, after most of the part that all captions share is removed: it describes how any image should look,
whatever its text, and fine-tuning overfits to it.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from .encoders import TextEncoder
from .sentences import Splitter, segments

OMEGA = 0.3  # the paper's weight of the common part
_LEVEL = 0.09  # the published code's: keeps the loss near one level for every omega
_BATCH = 64

# B captions and images, D width of the embeddings


@torch.no_grad()
def caption_embeddings(
    model: Any, tokenizer: Any, captions: Sequence[str], *, splitter: Splitter = "sentences", merge: bool = False
) -> Tensor:
    """The mean of the normalised embeddings of each caption's segments, [B, D]; not normalised again.

    Args:
        model: A CLIPModel of transformers, such as the published Denscore or PickScore.
        tokenizer: Its tokenizer, or the processor with it.
        captions: Of any length.
        splitter: As in `encode_long_prompt`. "longalign" is how the published code scores.
        merge: As in `encode_long_prompt`.
    """
    if not hasattr(model, "get_text_features"):
        raise ValueError(f"{type(model).__name__}: expected a CLIPModel, which embeds texts and images in one space.")
    if isinstance(captions, str) or not captions or not all(isinstance(one, str) for one in captions):
        raise ValueError(f"captions={captions!r}: expected a list of strings, one at least.")
    encoder = TextEncoder(getattr(tokenizer, "tokenizer", tokenizer), model)
    parts = [segments(one, encoder.count, encoder.length - 2, splitter, merge=merge) for one in captions]
    flat = [part for each in parts for part in each]
    batches = (encoder.tokens(flat[at : at + _BATCH]).to(model.device) for at in range(0, len(flat), _BATCH))
    found = torch.cat([model.get_text_features(**batch).pooler_output for batch in batches])
    return torch.stack([rows.mean(0) for rows in F.normalize(found, dim=-1).split([len(each) for each in parts])])


@torch.no_grad()
def common_direction(texts_BD: Tensor, gather: Callable[[Tensor], Tensor] | None = None) -> Tensor:
    """V: the direction, of length 1, that the captions' embeddings share, [D].

    Args:
        texts_BD: Embeddings of a batch, or of any set of captions, the larger the better.
        gather: Stacks the [1, D] of all processes to [N, D], as `accelerator.gather` does: V of the whole batch.
    """
    total = _precise(texts_BD).sum(0, keepdim=True)
    if gather is not None:
        total = gather(total)
    return F.normalize(total.sum(0), dim=0)


def preference_score(
    images_BD: Tensor,
    texts_BD: Tensor,
    *,
    omega: float = OMEGA,
    common: Tensor | None = None,
    gather: Callable[[Tensor], Tensor] | None = None,
) -> Tensor:
    """The match of each image with its own caption, [B]: the text-relevant part of the score, and `omega` of the rest.

    <e - (1 - omega) <e, V> V, x>, where x is the image's normalised embedding, e the caption's (`caption_embeddings`,
    or the normalised one of a short text), V the direction that captions share. Gradients flow to the images only.

    Args:
        images_BD: Embeddings of images, of any norm.
        texts_BD: Embeddings of their captions, in the same order.
        omega: The weight of the shared part: 0.3 in the paper; 1 is the plain score, 0 leaves that part out.
        common: V, by default `common_direction` of this batch, as in the paper.
        gather: As in `common_direction`, if V is of this batch.

    Raises:
        ValueError: Shapes that differ, an omega outside 0 to 1, or a batch of one without `common`: its V is itself.
    """
    if images_BD.ndim != 2 or images_BD.shape != texts_BD.shape:
        raise ValueError(
            f"images of shape {list(images_BD.shape)} and texts of shape {list(texts_BD.shape)}: expected the same "
            f"[pairs, width] for both."
        )
    _check_omega(omega)
    if common is None:
        if len(texts_BD) < 2 and gather is None:
            raise ValueError(
                "one caption: the part that captions share cannot be separated. Give a larger batch, `gather`, or "
                "common=common_direction(...) of other captions."
            )
        common = common_direction(texts_BD, gather)
    if common.shape != texts_BD.shape[1:]:
        raise ValueError(f"common of shape {list(common.shape)}: expected [{texts_BD.shape[1]}], a direction.")
    texts, direction = _precise(texts_BD.detach()), F.normalize(_precise(common.detach()), dim=0)
    texts = texts - (1 - omega) * (texts @ direction)[:, None] * direction
    return (texts * F.normalize(_precise(images_BD), dim=-1)).sum(-1)


def preference_loss(score_B: Tensor, omega: float = OMEGA) -> Tensor:
    """The loss of reward fine-tuning: 0.5 (1 - mean score) - 0.09 (1 - omega), whose last term only sets its level."""
    _check_omega(omega)
    return 0.5 * (1 - score_B.mean()) - _LEVEL * (1 - omega)


def _precise(tensor: Tensor) -> Tensor:
    return tensor.to(torch.promote_types(tensor.dtype, torch.float32))


def _check_omega(omega: float) -> None:
    if isinstance(omega, bool) or not isinstance(omega, (int, float)) or not 0 <= omega <= 1:
        raise ValueError(f"omega={omega!r}: expected a number from 0 to 1. The paper's is {OMEGA}.")
