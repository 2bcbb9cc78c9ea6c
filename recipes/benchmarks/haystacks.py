"""Long texts for retrieval benchmarks: documents cut into pieces, shuffled by a seed, with facts put into them."""

from __future__ import annotations

from collections.abc import Iterable
from copy import copy
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

PIECE = 4096  # tokens that stay together when documents are shuffled
CHARACTERS = 100_000  # that are tokenised at once, so that many are tokenised side by side


class Haystacks:
    """All texts of a folder as token ids, and haystacks of any length made of them."""

    def __init__(self, tokenizer: Any, folder: Path) -> None:
        paths = sorted(folder.glob("*.txt"))
        if not paths:
            raise SystemExit(
                f"{folder} has no .txt files: python -m recipes.benchmarks.documents {folder} fetches some."
            )
        parts = [part for path in paths for part in _parts(path.read_text(encoding="utf-8"))]
        rows = tokenizer(parts, add_special_tokens=False, return_attention_mask=False, verbose=False)["input_ids"]
        ids = torch.cat([torch.tensor(row) for row in rows])
        self._pieces = ids[: len(ids) // PIECE * PIECE].view(-1, PIECE)

    @property
    def distinct(self) -> int:
        """Tokens of which none is repeated."""
        return self._pieces.numel()

    def halves(self) -> tuple[Haystacks, Haystacks]:
        """Two that share no piece: one to train on, and one to measure on."""
        if len(self._pieces) < 2:
            raise ValueError(
                f"{self.distinct:,} tokens of text: two halves take {2 * PIECE:,} at least. Add documents."
            )
        twins = copy(self), copy(self)
        for start, twin in enumerate(twins):
            twin._pieces = self._pieces[start::2]
        return twins

    def make(self, length: int, seed: int) -> Tensor:
        """(length,) ids: pieces in an order given by `seed`; in another order each time the documents are used up."""
        generator = torch.Generator().manual_seed(seed)
        wanted, order = -(-length // PIECE), []
        while wanted > 0:
            order.append(torch.randperm(len(self._pieces), generator=generator)[:wanted])
            wanted -= len(order[-1])
        return self._pieces[torch.cat(order)].flatten()[:length].clone()


def put(hay_L: Tensor, facts: Iterable[tuple[float, list[int]]]) -> Tensor:
    """A copy of a haystack in which each fact stands in place of as many tokens, at a share 0 to 1 of the length.

    The rest stays where it is, so segments without a fact are the same in every copy.
    """
    hay_L = hay_L.clone()
    for depth, ids in facts:
        at = round(depth * (len(hay_L) - len(ids)))
        hay_L[at : at + len(ids)] = torch.tensor(ids)
    return hay_L


def _parts(text: str) -> list[str]:
    parts, start = [], 0
    while start < len(text):
        end = text.find("\n", start + CHARACTERS)
        end = len(text) if end < 0 else end
        parts.append(text[start:end])
        start = end
    return parts
