"""What a forward does to the states of each row, and states that are put back. `attention/waiting.py` says why."""

# B batch
from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from .base import UnrotatedLayer
from .recurrent import states_by_place

SPOILT = -1  # in the place of a number of tokens: a state that has read padding, which cannot be taken out again


@dataclass
class Rows:
    """What a forward means for the states of each row.

    Args:
        read_B: how many tokens they will have read after it, or `SPOILT`.
        waits_B: the rows that read nothing; None: there are none.
        before: the states of all rows as they were, by their places in the cache, where a row waits.
    """

    read_B: Tensor
    waits_B: Tensor | None = None
    before: dict[Any, Tensor] | None = None


def put_back(rows: Rows, cache: Any, layers: list[UnrotatedLayer]) -> None:
    """After a forward: note what the states have read, and give the rows that waited theirs of before it.

    `cache` is None where nothing was cached. A cache of the model's own kind, which keeps them elsewhere (MiniMax),
    cannot be given them.
    """
    found, read_B = states_by_place(cache), rows.read_B
    if rows.waits_B is not None and not found:
        read_B = torch.where(rows.waits_B, SPOILT, read_B)
    for layer in layers:
        layer.read_B = read_B
    if rows.waits_B is None or rows.before is None:
        return
    for (i, kind, key), state in found.items():
        before = rows.before.get((i, kind, key))
        before = torch.zeros_like(state) if before is None else before
        waits = rows.waits_B.to(state.device)
        if state.requires_grad:  # what its gradient needs stays as it is
            waits = waits.view(-1, *[1] * (state.ndim - 1))
            getattr(cache.layers[i], kind)[key] = torch.where(waits, before, state)
        else:  # in place, since compiled graphs know its address
            state[waits] = before[waits]
