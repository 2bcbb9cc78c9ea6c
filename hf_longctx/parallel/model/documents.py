"""Which documents a batch consists of: read once, of the whole batch, before anything is shared among ranks."""

# B rows, T tokens of a row, N real tokens of the batch
from __future__ import annotations

from dataclasses import dataclass
from itertools import pairwise
from typing import Any

import torch
from torch import Tensor
from torch.nn.functional import pad

IGNORED = -100  # a label that is not predicted
PADDING, INSIDE, START = 0, 1, 2  # what a token is: a mark


@dataclass(frozen=True, eq=False)
class Documents:
    """The documents of a batch: rows, or what is packed in them.

    Args:
        lengths: Tokens of each.
        where_N: Where their tokens stand in the flattened batch.
    """

    lengths: list[int]
    where_N: Tensor

    @classmethod
    def of(cls, marks_BT: Tensor) -> Documents:
        """From the marks of a batch, on the host. ValueError for padding anywhere but at the end of rows."""
        real_BT = marks_BT != PADDING
        if bool((real_BT[:, 1:] & ~real_BT[:, :-1]).any()):
            row = int((real_BT[:, 1:] & ~real_BT[:, :-1]).any(1).nonzero()[0])
            raise ValueError(
                f"attention_mask: row {row} has padding before a token. Sequence parallelism takes batches that are "
                f"padded on the right (tokenizer.padding_side='right'), or packed ones without padding."
            )
        where_N = real_BT.flatten().nonzero()[:, 0]
        starts = (marks_BT.flatten()[where_N] == START).nonzero()[:, 0].tolist()
        edges = [*starts, len(where_N)]
        return cls([b - a for a, b in pairwise(edges)], where_N)


def positions_of(shape: tuple[int, int], position_ids: Any, cu_seq_lens: Any, device: torch.device) -> Tensor:
    """The positions of all tokens, (B, T): as given, or counted in each row or document."""
    B, T = shape
    if position_ids is not None:
        if position_ids.dim() > 2 or position_ids.shape[-1] != T or position_ids.shape[0] not in (1, B):
            raise ValueError(
                f"position_ids of the shape {tuple(position_ids.shape)}: expected ({B}, {T}), one for each token."
            )
        return position_ids.to(device).expand(B, T)
    counted_T = torch.arange(T, device=device)
    if cu_seq_lens is None:
        return counted_T.expand(B, T)
    starts_T = _starts_at(cu_seq_lens, shape, device)[0]
    return (counted_T - torch.where(starts_T, counted_T, 0).cummax(0).values)[None]


def marks_of(positions_BT: Tensor, attention_mask: Any, cu_seq_lens: Any) -> Tensor:
    """What each token is, uint8, without waiting for a device.

    A document starts with a row, where `cu_seq_lens` says so, or, without them, where positions do not go on by one.
    """
    B, T = positions_BT.shape
    device = positions_BT.device
    if attention_mask is None:
        real_BT = torch.ones(B, T, dtype=torch.bool, device=device)
    elif not isinstance(attention_mask, Tensor) or attention_mask.shape != (B, T):
        given = tuple(attention_mask.shape) if isinstance(attention_mask, Tensor) else type(attention_mask).__name__
        raise ValueError(
            f"attention_mask: {given}, expected ({B}, {T}) of 0 (padding, on the right) and 1. A mask that says who "
            f"sees whom cannot be shared among ranks: give packed documents by position_ids."
        )
    else:
        real_BT = attention_mask.to(device).bool()
    if cu_seq_lens is not None:
        starts_BT = _starts_at(cu_seq_lens, (B, T), device)
    else:
        starts_BT = pad(positions_BT.diff(dim=1) != 1, (1, 0))
    starts_BT = starts_BT.clone()
    starts_BT[:, :1] = True
    return torch.where(real_BT, torch.where(starts_BT, START, INSIDE), PADDING).to(torch.uint8)


def next_labels(labels_BT: Tensor, marks_BT: Tensor) -> Tensor:
    """The label of the next token, for each; the last one of a document, and padding, predict nothing."""
    goes_on_BT = pad(marks_BT[:, 1:] == INSIDE, (0, 1))
    return torch.where(goes_on_BT, pad(labels_BT[:, 1:], (0, 1)), IGNORED)


def _starts_at(cu_seq_lens: Any, shape: tuple[int, int], device: torch.device) -> Tensor:
    B, T = shape
    if not isinstance(cu_seq_lens, Tensor):
        raise ValueError(
            f"cu_seq_lens_q: {type(cu_seq_lens).__name__}, expected a tensor of where documents begin and end."
        )
    if B != 1:
        raise ValueError(f"cu_seq_lens_q with {B} rows: expected one row, in which all documents are packed.")
    starts_T = torch.zeros(T + 1, dtype=torch.bool, device=device)
    starts_T[cu_seq_lens.flatten().to(device, torch.int64)] = True  # ends too: the last one is one too far
    return starts_T[None, :-1]
