"""Packs of real texts for training: tokens, and where each document begins."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from hf_longctx.hub.resolve import load_tokenizer

from ..reading import K
from .packs import pack

RANDOM = "random"  # in place of a model: random weights, and the bytes of a text are its tokens
TOKENS, STEPS = 8 * K, 200
MEAN = 6.5  # of the logarithm of lengths: documents of about 1,400 tokens


def tokens(model: str, documents: Path) -> Tensor:
    """All texts of a folder, one after the other."""
    texts = [path.read_text(encoding="utf-8") for path in sorted(documents.glob("*.txt"))]
    if not texts:
        raise FileNotFoundError(f"{documents} has no .txt file. Fetch them: python -m recipes.benchmarks.documents DIR")
    if model == RANDOM:
        return torch.frombuffer(bytearray("\n".join(texts).encode()), dtype=torch.uint8).to(torch.int64)
    tokenizer: Any = load_tokenizer(model)
    return torch.cat([tokenizer(text, return_tensors="pt").input_ids[0] for text in texts])


def packs(ids: Tensor, total: int, steps: int, mean_log: float) -> list[dict[str, Tensor]]:
    """A batch for each step: the next tokens of the texts, cut into documents. Texts begin again where they end."""
    made = []
    for step in range(steps):
        places = torch.arange(step * total, (step + 1) * total) % len(ids)
        positions = torch.cat([torch.arange(length) for length in pack(total, step, mean_log)])[None]
        part = ids[places][None]
        made.append({"input_ids": part, "position_ids": positions, "labels": part.where(positions != 0, -100)})
    return made
