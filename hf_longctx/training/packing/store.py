"""The tokens and labels of many documents, four bytes each."""

# N tokens of all documents
from __future__ import annotations

from array import array
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from itertools import accumulate, pairwise
from numbers import Integral
from typing import Any

import torch
from torch import Tensor

from ...parallel.model.documents import IGNORED


@dataclass(frozen=True, eq=False)
class TokenStore:
    """Documents one after the other.

    Args:
        ids_N: Their tokens.
        labels_N: What each token is as a target: itself, or IGNORED.
        edges: Where each begins, and where the last one ends.
    """

    ids_N: Tensor
    labels_N: Tensor
    edges: list[int]

    @classmethod
    def of(cls, documents: Iterable[Any]) -> TokenStore:
        """From sequences of token ids, or rows with input_ids and perhaps labels: a list, a generator, a `Dataset`."""
        ids, labels, lengths = array("i"), array("i"), []
        for number, document in enumerate(_each(documents)):
            own, targets = _read(document, number)
            ids.extend(own)
            labels.extend(targets)
            lengths.append(len(own))
        return cls(_tensor(ids), _tensor(labels), [0, *accumulate(lengths)])

    @property
    def lengths(self) -> list[int]:
        """Tokens of each document."""
        return [end - start for start, end in pairwise(self.edges)]

    def targets_before(self) -> Any:
        """How many targets stand before each token, as an array; those of a stretch are a difference of two."""
        targets_N = (self.labels_N != IGNORED).cumsum(0, dtype=torch.int32)
        return torch.cat([torch.zeros(1, dtype=torch.int32), targets_N]).numpy()


def _each(documents: Any) -> Iterator[Any]:
    try:
        return iter(documents)
    except TypeError:
        raise ValueError(
            f"documents={documents!r:.60}: expected documents to go through, lists of token ids or rows with "
            f"input_ids, in a list, a generator or a datasets.Dataset."
        ) from None


def _read(document: Any, number: int) -> tuple[list[int], list[int]]:
    row: Mapping[str, Any] = document if isinstance(document, Mapping) else {"input_ids": document}
    if "input_ids" not in row:
        raise ValueError(f"document {number} has {sorted(row)}: expected input_ids, and perhaps labels.")
    ids, labels = _listed(row["input_ids"], number), row.get("labels")
    if labels is None:
        return ids, ids
    targets = _listed(labels, number)
    if len(targets) != len(ids):
        raise ValueError(f"document {number} has {len(targets)} labels for {len(ids)} tokens: expected one for each.")
    return ids, targets


def _listed(values: Any, number: int) -> list[int]:
    found = values.tolist() if hasattr(values, "tolist") else values
    if isinstance(found, (str, int)) or (len(found) and not isinstance(found[0], Integral)):
        kind = type(found).__name__ if isinstance(found, (str, int)) else f"a list of {type(found[0]).__name__}"
        raise ValueError(f"document {number} is {kind}: expected token ids. Tokenise texts first, one document each.")
    return list(found)


def _tensor(values: array[int]) -> Tensor:
    return torch.frombuffer(values, dtype=torch.int32) if values else torch.zeros(0, dtype=torch.int32)
