"""Normalised embeddings of captions and picture files, in batches."""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from ..upstream.installing import install_extra
from .checks import evaluating


def encode_captions(tokenizer: Any, captions: Sequence[str], limit: int, *, truncate: bool = False) -> Tensor:
    """Token ids, [C, T], start and end included, padded on the right to the longest.

    Raises:
        ValueError: A caption of more than `limit` tokens, unless `truncate` cuts it; an empty one.
    """
    for i, caption in enumerate(captions):
        if not caption.strip():
            raise ValueError(f"caption {i} is empty. Leave its image out, or caption it.")
    cut = {"truncation": True, "max_length": limit} if truncate else {}
    rows = tokenizer(list(captions), verbose=False, **cut).input_ids
    longest = max(range(len(rows)), key=lambda i: len(rows[i]), default=None)
    if longest is not None and len(rows[longest]) > limit:
        over = sum(len(row) > limit for row in rows)
        raise ValueError(
            f"{over} of {len(rows)} captions have more than the model's {limit} tokens; the longest, caption {longest} "
            f"({captions[longest][:60]!r}...), has {len(rows[longest])}. Shorten them, stretch the model further, or "
            f"ask for truncation (truncate=True)."
        )
    pad = tokenizer.pad_token_id if tokenizer.pad_token_id is not None else tokenizer.eos_token_id
    ids = torch.full((len(rows), max(map(len, rows), default=0)), pad)
    for row, words in zip(ids, rows, strict=True):
        row[: len(words)] = torch.tensor(words)
    return ids


def read_image(path: str | os.PathLike[str]) -> Any:
    """An RGB picture; an error that names the file where it cannot be read."""
    try:
        from PIL import Image
    except ImportError as error:
        raise ImportError(f"Reading images needs pillow: {install_extra('clip')}.") from error
    try:
        with Image.open(path) as picture:
            return picture.convert("RGB")
    except FileNotFoundError:
        raise FileNotFoundError(f"there is no image {os.fspath(path)!r}. Correct the path, or leave it out.") from None
    # each format has its own exceptions for a broken file
    except Exception as error:
        raise ValueError(
            f"{os.fspath(path)!r} cannot be read as an image ({error}). Repair it, or leave it out."
        ) from error


def text_embeddings(model: Any, ids: Tensor) -> Tensor:
    """[C, T] ids to [C, D], normalised, with gradient."""
    return _normalised(model.get_text_features(input_ids=ids))


def image_embeddings(model: Any, pixels: Tensor) -> Tensor:
    """[I, 3, H, W] to [I, D], normalised, with gradient."""
    return _normalised(model.get_image_features(pixel_values=pixels))


@torch.no_grad()
def embed_captions(
    model: Any, tokenizer: Any, captions: Sequence[str], *, limit: int, truncate: bool = False, batch: int = 256
) -> Tensor:
    """[C, D] in float32, on the model's device. `limit` is the model's length in tokens."""
    ids = encode_captions(tokenizer, captions, limit, truncate=truncate)
    with evaluating(model):
        return torch.cat([text_embeddings(model, part.to(model.device)).float() for part in ids.split(batch)])


@torch.no_grad()
def embed_images(model: Any, processor: Any, paths: Sequence[str | Path], *, batch: int = 128) -> Tensor:
    """[I, D] in float32, on the model's device."""
    dtype = next(model.parameters()).dtype
    found = []
    with evaluating(model):
        for at in range(0, len(paths), batch):
            pixels = pixels_of(processor, [read_image(path) for path in paths[at : at + batch]])
            found.append(image_embeddings(model, pixels.to(model.device, dtype)).float())
    return torch.cat(found)


def pixels_of(processor: Any, pictures: Sequence[Any]) -> Tensor:
    """[I, 3, H, W] by an image processor, or by the one inside a processor."""
    prepare = getattr(processor, "image_processor", processor)
    pixels: Tensor = prepare(images=list(pictures), return_tensors="pt")["pixel_values"]
    return pixels


def _normalised(out: Any) -> Tensor:
    # transformers 5 wraps them; a user's own model may not
    return F.normalize(out if isinstance(out, Tensor) else out.pooler_output, dim=-1)
