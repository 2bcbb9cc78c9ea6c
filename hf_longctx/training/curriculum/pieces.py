"""`decompose`: documents cut into pieces of a power of two, which need neither padding, nor packing, nor a mask."""

# B rows, T tokens of a row
from __future__ import annotations

import logging
import random
from collections import Counter
from collections.abc import Iterable
from typing import Any

import torch
from torch.utils.data import Dataset

from ...settings import is_whole
from ..packing.store import TokenStore
from .cut import cut

logger = logging.getLogger("hf_longctx")


def decompose(
    documents: Iterable[Any], *, shortest: int = 256, longest: int = 8192, draw: str = "equal", seed: int = 0
) -> Decomposed:
    """Cut documents into pieces of `shortest` to `longest` targets, each a power of two.

    Args:
        documents: As of `pack`: sequences of token ids, or rows with input_ids and perhaps labels.
        shortest: The smallest piece; rests below it are left out, counted and logged.
        longest: The largest piece.
        draw: How a document of more than twice the longest is cut: "equal" draws sizes so that every bucket gets the
            same expected number of tokens, "longest" takes the longest one.
        seed: Of the draw.

    Raises:
        ValueError: A size is no power of two, or no document is as long as the longest piece.
    """
    for name, size in (("shortest", shortest), ("longest", longest)):
        if not is_whole(size) or size & (size - 1):
            raise ValueError(f"{name}={size!r}: expected a power of two, such as 256.")
    if shortest > longest or draw not in ("equal", "longest"):
        raise ValueError(
            f"shortest={shortest}, longest={longest}, draw={draw!r}: expected shortest <= longest, and 'equal' or "
            f"'longest'."
        )
    store = TokenStore.of(documents)
    found = max(store.lengths, default=0)
    if found <= longest:
        raise ValueError(
            f"no document has the {longest + 1} tokens of the longest piece; the longest has {found}. Give longer "
            f"documents, or set longest to a power of two below {max(found, 2)}."
        )
    drawn = random.Random(seed) if draw == "equal" else None
    spans = [
        (start + at, size)
        for start, tokens in zip(store.edges, store.lengths, strict=False)
        for at, size in cut(tokens, shortest, longest, drawn)
    ]
    made = Decomposed(store, spans)
    short = sum(tokens <= shortest for tokens in store.lengths)
    lost = sum(max(tokens - 1, 0) for tokens in store.lengths) - sum(size for _, size in spans)
    logger.info("%s", made.report())
    if lost:
        logger.warning(
            "%d tokens in rests below %d are left out; %d of %d documents are shorter than that",
            *(lost, shortest, short, len(store.lengths)),
        )
    return made


class Decomposed(Dataset[dict[str, Any]]):
    """Pieces of documents. Made by `decompose`, read by `Decomposed.collate`.

    Args:
        store: The documents.
        spans: Where each piece begins, and how many targets it has.
    """

    def __init__(self, store: TokenStore, spans: list[tuple[int, int]]) -> None:
        self._store, self._spans = store, spans

    @property
    def sizes(self) -> list[int]:
        """How many targets each piece has."""
        return [size for _, size in self._spans]

    def __len__(self) -> int:
        return len(self._spans)

    def __getitem__(self, number: int) -> dict[str, Any]:
        start, size = self._spans[number]
        span = slice(start, start + size + 1)
        # both names are arguments of every causal model, so Trainer keeps them
        return {"input_ids": self._store.ids_N[span].long(), "labels": self._store.labels_N[span].long()}

    @staticmethod
    def collate(rows: list[dict[str, Any]]) -> dict[str, Any]:
        """Pieces of one size as a batch: inputs, and the next token of each as its target."""
        ids_BT = torch.stack([row["input_ids"] for row in rows])
        targets_BT = torch.stack([row["labels"] for row in rows])[:, 1:].contiguous()
        return {"input_ids": ids_BT[:, :-1].contiguous(), "labels": targets_BT, "shift_labels": targets_BT}

    def report(self) -> str:
        """How many pieces and tokens each bucket has."""
        counts = dict(sorted(Counter(self.sizes).items()))
        total = sum(size * count for size, count in counts.items())
        each = ", ".join(f"{size}: {count:,} ({size * count / total:.1%})" for size, count in counts.items())
        return f"{len(self._store.lengths):,} documents in {len(self):,} pieces of {total:,} tokens; by size {each}"
