"""`pack`: documents in rows of nearly one length, as a dataset for any trainer."""

from __future__ import annotations

import logging
from collections.abc import Iterable
from typing import Any

import torch
from torch.utils.data import Dataset

from ...parallel.model.documents import IGNORED
from .fit import best_fit
from .pieces import Pieces, named, pieces_of
from .store import TokenStore

logger = logging.getLogger("hf_longctx")


def pack(documents: Iterable[Any], length: int, *, too_long: str = "refuse") -> Packs:
    """Pack documents by best-fit-decreasing. What becomes of those that do not fit is counted, and logged.

    Args:
        documents: Sequences of token ids, or rows with input_ids and perhaps labels (-100: no target), from a list, a
            generator or a `datasets.Dataset`.
        length: The most tokens of a pack.
        too_long: What becomes of a longer document: "split" into pieces that do not see each other (successive ones
            share a token, so that no target is lost), "drop" all of it, or "refuse" with an error.

    Raises:
        ValueError: A document is too long and `too_long="refuse"`; or no document has a target.
    """
    store = TokenStore.of(documents)
    pieces = pieces_of(store, length, too_long)
    packs = best_fit([end - start for start, end in pieces.spans], length)
    made = Packs(store, pieces, packs, length, too_long)
    logger.info("%s", made.report())
    if pieces.too_long or pieces.no_targets:
        logger.warning("%s", made.left_out())
    return made


class Packs(Dataset[dict[str, Any]]):
    """Rows of input_ids, labels and position_ids, with seq_lengths as TRL's packs have them. Made by `pack`.

    Each document's positions begin with 0, and its first token is no target.
    """

    def __init__(self, store: TokenStore, pieces: Pieces, packs: list[list[int]], length: int, too_long: str) -> None:
        self._store, self._packs = store, packs
        self.pieces, self.length, self.too_long = pieces, length, too_long

    def __len__(self) -> int:
        return len(self._packs)

    def __getitem__(self, number: int) -> dict[str, Any]:
        spans = [self.pieces.spans[piece] for piece in self._packs[number]]
        ids = torch.cat([self._store.ids_N[start:end] for start, end in spans]).long()
        labels = torch.cat([self._store.labels_N[start:end] for start, end in spans]).long()
        positions = torch.cat([torch.arange(end - start) for start, end in spans])
        labels[positions == 0] = IGNORED
        lengths = [end - start for start, end in spans]
        return {"input_ids": ids, "labels": labels, "position_ids": positions, "seq_lengths": lengths}

    def rows(self) -> list[dict[str, list[int]]]:
        """The packs as lists, with the columns of TRL's packed datasets: for `datasets.Dataset.from_list`."""
        names = ("input_ids", "labels", "seq_lengths")
        return [
            {name: torch.as_tensor(row[name]).tolist() for name in names}
            for row in map(self.__getitem__, range(len(self)))
        ]

    def report(self) -> str:
        """How many documents and tokens are in how many packs, and how full these are."""
        tokens = sum(end - start for start, end in self.pieces.spans)
        return (
            f"{len(self._store.lengths):,} documents: {tokens:,} tokens in {len(self):,} packs of {self.length:,}, "
            f"which are {tokens / (len(self) * self.length):.1%} full"
        )

    def left_out(self) -> str:
        """Which documents were split or dropped; empty if none was."""
        said, done = [], {"split": "split", "drop": "dropped"}.get(self.too_long)
        if self.pieces.too_long:
            numbers = self.pieces.too_long
            tokens = sum(self._store.lengths[number] for number in numbers)
            said.append(
                f"{len(numbers)} documents of {tokens:,} tokens are longer than {self.length:,} and were {done}: "
                f"{named(numbers)}"
            )
        if self.pieces.left_out:
            said.append(f"{self.pieces.left_out} pieces of split documents have no target and were left out")
        if self.pieces.no_targets:
            numbers = self.pieces.no_targets
            said.append(f"{len(numbers)} documents have no target and were left out: {named(numbers)}")
        return "; ".join(said)
