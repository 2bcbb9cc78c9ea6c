"""A model on a benchmark: embeddings, then scores."""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch

from ..embed import embed_captions, embed_images
from ..pairs import Pair
from ..stretch import text_length
from .bins import Bin, by_bins
from .protocols import Retrieval
from .recall import Recall, found, recall
from .zero_shot import TEMPLATES, class_embeddings, classify, read_classes

_LENGTHS = (21, 78, 128, 192, 249)  # from the kept positions and CLIP's table to Long-CLIP's


def evaluate_retrieval(
    model: Any, tokenizer: Any, processor: Any, data: Retrieval, *, truncate: bool | None = None, batch: int = 128
) -> Recall:
    """R@1, R@5 and R@10, both ways.

    Args:
        model: A CLIPModel or similar, on its device.
        tokenizer: The model's.
        processor: The model's, or its image processor alone.
        data: From `read_protocol`, or your own.
        truncate: Cut captions at the model's length; by default as the protocol does.
        batch: Images and captions embedded at once.
    """
    cut = data.truncate if truncate is None else truncate
    length = text_length(model)
    captions = embed_captions(model, tokenizer, data.captions, limit=length, truncate=cut, batch=batch)
    return recall(embed_images(model, processor, data.images, batch=batch), captions, torch.tensor(data.image_of))


def evaluate_zero_shot(
    model: Any,
    tokenizer: Any,
    processor: Any,
    folder: str | os.PathLike[str],
    templates: Sequence[str] = TEMPLATES,
    *,
    batch: int = 128,
) -> dict[int, float]:
    """Top-1 and top-5 accuracy on a folder with a folder of images for each class."""
    images, labels, names = read_classes(folder)
    length = text_length(model)
    classes = class_embeddings(
        lambda texts: embed_captions(model, tokenizer, texts, limit=length, batch=batch), names, templates
    )
    found = embed_images(model, processor, images, batch=batch)
    return classify(found, classes, labels.to(found.device))


@dataclass(frozen=True)
class PairsReport:
    """Retrieval among held-out pairs: long and short captions both ways, and R@1 by the long captions' tokens."""

    long: Recall
    short: Recall
    by_length: list[Bin]


def evaluate_pairs(
    model: Any, tokenizer: Any, processor: Any, pairs: Sequence[Pair], *, truncate: bool = False, batch: int = 128
) -> PairsReport:
    """Retrieval among pairs held out of the training, with their long and their short captions.

    The other arguments are those of `evaluate_retrieval`; `truncate` is what a model of 77 tokens needs.
    """
    length = text_length(model)
    images = embed_images(model, processor, [pair.image for pair in pairs], batch=batch)
    long, short = (
        embed_captions(model, tokenizer, captions, limit=length, truncate=truncate, batch=batch)
        for captions in ([pair.long for pair in pairs], [pair.short for pair in pairs])
    )
    tokens = torch.tensor([len(row) for row in tokenizer([pair.long for pair in pairs], verbose=False).input_ids])
    edges = [0, *(edge for edge in _LENGTHS if edge < int(tokens.max())), int(tokens.max()) + 1]
    return PairsReport(recall(images, long), recall(images, short), by_bins(found(images, long).cpu(), tokens, edges))
