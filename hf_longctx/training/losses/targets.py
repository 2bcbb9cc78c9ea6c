"""What a batch's tokens predict, in which documents, and how much each weighs in the loss."""

# B rows, T tokens of a row, N = B * T
from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.nn.functional import pad

from ...parallel.model.documents import IGNORED, PADDING, START, marks_of, next_labels, positions_of


@dataclass(frozen=True, eq=False)
class Targets:
    """The targets of a batch.

    Args:
        next_BT: The next token of each as its target, or IGNORED; at the end of documents always.
        document_BT: The number of each token's document in the batch, from 1 on.
    """

    next_BT: Tensor
    document_BT: Tensor

    @classmethod
    def of(cls, batch: Mapping[str, Any]) -> Targets:
        """Of the arguments of a forward: documents are rows, or what positions or cu_seq_lens_q say is packed in them.

        Nothing waits for a device.
        """
        labels_BT, edges = batch["labels"], batch.get("cu_seq_lens_q")
        shape, device = (labels_BT.shape[0], labels_BT.shape[1]), labels_BT.device
        positions_BT = positions_of(shape, batch.get("position_ids"), edges, device)
        marks_BT = marks_of(positions_BT, batch.get("attention_mask"), edges)
        next_BT = batch.get("shift_labels")
        if next_BT is None:
            next_BT = next_labels(labels_BT, marks_BT)
        # behind padding on the left, too, a document begins
        starts_BT = (marks_BT == START) | pad(marks_BT[:, :-1] == PADDING, (1, 0), value=True)
        return cls(next_BT, starts_BT.flatten().cumsum(0).view(shape))

    @property
    def _targets_of_N(self) -> Tensor:
        """How many targets each document has, by its number."""
        counts_N = torch.zeros(self.next_BT.numel() + 1, dtype=torch.int64, device=self.next_BT.device)
        return counts_N.index_add_(0, self.document_BT.flatten(), (self.next_BT != IGNORED).flatten().long())

    def weights(self) -> Tensor:
        """1 over the number of targets of its document, (B, T) in float32: all documents weigh the same."""
        counts_BT = self._targets_of_N[self.document_BT]
        return (self.next_BT != IGNORED) / counts_BT.clamp(min=1)

    def counted(self, weighting: str) -> Tensor:
        """Labels of which Trainer counts those that are not IGNORED: the divisor of the loss is their number."""
        if weighting == "token":
            return self.next_BT
        return torch.where(self._targets_of_N > 0, 0, IGNORED)[None]
