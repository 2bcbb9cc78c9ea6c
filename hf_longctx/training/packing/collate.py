"""`PackCollator`: packed rows as a batch of one row, in which stock models and SequenceParallel find the documents."""

# T tokens of a row, or of all rows of a batch
from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from ...parallel.model.documents import IGNORED


@dataclass(frozen=True)
class PackCollator:
    """Rows one after the other, without padding and without a mask, which would hide where documents are.

    It reads rows of `pack`, packed rows of TRL (with seq_lengths), and rows of one document each. `use_cache=False` is
    in the batch: a cache, too, makes stock models forget the documents.

    Args:
        cu_seq_lens: Also give the edges of documents, for which flash attention else waits in each layer.
    """

    cu_seq_lens: bool = False

    def __call__(self, rows: list[dict[str, Any]]) -> dict[str, Any]:
        ids_T = torch.cat([_tensor(row["input_ids"]) for row in rows])
        labels_T = torch.cat([_tensor(row.get("labels", row["input_ids"])) for row in rows])
        positions_T = torch.cat([_positions(row) for row in rows])
        starts_T = positions_T == 0
        batch: dict[str, Any] = {
            "input_ids": ids_T[None],
            "labels": labels_T.masked_fill(starts_T, IGNORED)[None],
            "position_ids": positions_T[None],
            "use_cache": False,
        }
        if self.cu_seq_lens:
            edges = torch.cat([starts_T.nonzero()[:, 0], torch.tensor([len(ids_T)])]).to(torch.int32)
            longest = int(edges.diff().max())
            batch |= {"cu_seq_lens_q": edges, "cu_seq_lens_k": edges, "max_length_q": longest, "max_length_k": longest}
        return batch


def _positions(row: dict[str, Any]) -> Tensor:
    """From 0 on in each document."""
    length = len(row["input_ids"])
    lengths = row.get("seq_lengths")
    if lengths is None and row.get("position_ids") is not None:
        return _tensor(row["position_ids"])
    lengths = [length] if lengths is None else [int(n) for n in lengths]
    if sum(lengths) != length:
        raise ValueError(f"seq_lengths sum to {sum(lengths)}: expected {length}, the tokens of the row.")
    return torch.cat([torch.arange(n) for n in lengths])


def _tensor(values: Any) -> Tensor:
    return torch.as_tensor(values, dtype=torch.int64)
