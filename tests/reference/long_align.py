"""LongAlign as its published code does it, sentence by sentence and in the paper's symbols."""

from __future__ import annotations

import re
from typing import Any

import torch
from torch import Tensor

TOKENS, LAST = 240, 60


@torch.no_grad()
def hidden(tokenizer: Any, encoder: Any, text: str, layer: int | None = None) -> Tensor:
    """One text by itself, cut at and filled to the encoder's length, without an attention mask; [77, width]."""
    ids = tokenizer(text, padding="max_length", truncation=True, max_length=tokenizer.model_max_length).input_ids
    out = encoder(torch.tensor([ids]), output_hidden_states=True)
    return out.last_hidden_state[0] if layer is None else out.hidden_states[layer][0]


def words(tokenizer: Any, text: str) -> int:
    """<sot> and the words, without <eot>."""
    return len(tokenizer(text, truncation=True, max_length=tokenizer.model_max_length).input_ids) - 1


def pad_star(tokenizer: Any, encoder: Any, layer: int | None = None) -> Tensor:
    """The mean of the last 60 states of the empty text."""
    return hidden(tokenizer, encoder, "", layer)[-LAST:].mean(0)


def encoded(tokenizer: Any, encoder: Any, s_i: list[str], length: int = TOKENS, layer: int | None = None) -> Tensor:
    """<sot> s1 <sot> s2 ... pad* pad*, [length, width]."""
    rows = [state for s in s_i for state in hidden(tokenizer, encoder, s, layer)[: words(tokenizer, s)]]
    rows += [pad_star(tokenizer, encoder, layer)] * (length - len(rows))
    return torch.stack(rows[:length])


def sentences_as_published(caption: str) -> list[str]:
    pieces = [piece + "." for piece in re.split(r'"!|\.|\?|;"', caption) if len(piece) > 0]
    return pieces or [caption]


def score(x: Tensor, segments: list[Tensor], omega: float) -> list[Tensor]:
    """x [B, D] of images, and for each caption its segments [s, D]: e' = e - (1 - omega) <e, V> V, <e', x>."""
    E = [torch.stack([e / e.norm() for e in one]).mean(0) for one in segments]
    V = sum(E) / len(E)
    V = V / V.norm()
    return [(e - (1 - omega) * (e @ V) * V) @ (image / image.norm()) for e, image in zip(E, x, strict=True)]


def loss(scores: list[Tensor], omega: float) -> Tensor:
    return (1 - sum(scores) / len(scores)) * 0.5 - 0.09 * (1 - omega)
