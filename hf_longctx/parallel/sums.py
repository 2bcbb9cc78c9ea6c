"""Gradients of the rows of a table of keys, from those of the keys that a kernel was given.

A key may have been there for several runs, and some rows for none. On a GPU one launch of a Triton kernel does what
torch has five for: zeros, keys and values side by side, their wider dtype, the sums.
"""

# G key/value heads, S keys of a block, N rows of the table, E = 2 D: a key and its value, R keys of a row at most
from __future__ import annotations

import torch
from torch import Tensor

from ..ops.available import TRITON
from .blocks import RankBlock, add_rows

FEW = 4  # runs that a key is there for: the launch reads as many numbers for every row


def sum_rows(parts: list[Tensor], block: RankBlock, rows: int, dtype: torch.dtype) -> Tensor:
    """(N, G, E) in a wide dtype: for each of so many rows the sum of what the block's columns have of it.

    The parts are the gradients of keys and of values, (S, G, D) each; the list is emptied, to free them early.
    """
    dk_SGD, dv_SGD = parts
    parts.clear()
    if _in_triton(dk_SGD) and dtype == torch.float32:
        sources_RN = sources(block, rows)
        if len(sources_RN) <= FEW:
            from ..ops.kernels.triton_sum_rows import sum_sources

            return sum_sources(dk_SGD, dv_SGD, sources_RN)
    _, G, D = dk_SGD.shape
    total = dk_SGD.new_zeros(rows, G, 2 * D, dtype=dtype)
    part = torch.cat([dk_SGD, dv_SGD], -1)
    del dk_SGD, dv_SGD  # memory is highest in what follows
    add_rows(total, block.columns, part, 0)
    return total


def prepare(block: RankBlock | None, rows: int) -> None:
    """Copy to the device what the layers share, before they have given it work that the copy would wait for."""
    if block is not None and _in_triton(block.positions.q_pos_BL):
        sources(block, rows)


def _in_triton(x: Tensor) -> bool:
    return TRITON and x.is_cuda


def sources(block: RankBlock, rows: int) -> Tensor:
    """Which of the block's columns are each row of a table, (R, N) of int32, then -1; on the device of the block.

    The layers of a forward share them.
    """
    memo, key = block.positions.memo, (__name__, rows)
    assert memo is not None
    if key not in memo:
        device, on_host = block.positions.q_pos_BL.device, sources_of(block.numbers_S, rows)
        on_host = on_host.pin_memory() if device.type == "cuda" else on_host  # else the host waits for the copy
        memo[key] = on_host.to(device, non_blocking=True)
    found: Tensor = memo[key]
    return found


def sources_of(numbers_S: Tensor, rows: int) -> Tensor:
    """The same on the host, from the row of each column."""
    most = int(numbers_S.bincount(minlength=rows).max())
    found_RN = torch.empty(most, rows, dtype=torch.int64)
    left_S = torch.arange(len(numbers_S))  # without a sort, which would take the host long
    for first_N in found_RN:
        row_S = numbers_S[left_S]
        first_N.fill_(len(numbers_S)).scatter_reduce_(0, row_S, left_S, "amin")
        left_S = left_S[first_N[row_S] != left_S]
    return found_RN.masked_fill_(found_RN == len(numbers_S), -1).to(torch.int32)
