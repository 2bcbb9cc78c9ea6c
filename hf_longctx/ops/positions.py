"""`Positions`: where queries and keys stand, and what is known about their order, as one value."""

# B batch, L queries, S keys, N runs + 1
from __future__ import annotations

from dataclasses import dataclass, field
from functools import cached_property
from typing import Any

from torch import Tensor


@dataclass(frozen=True, eq=False)
class Segments:
    """Runs of rows that belong together: queries cu_q[i]:cu_q[i+1] read keys cu_k[i]:cu_k[i+1], and no others.

    Every row is in a run, so none is padding. Queries and keys of a run rise and end together: what causal attention
    lets a query see by position is what it sees by index, counted from the end (an aligned square when equally long).
    Only `Full` inside needs no such order. The numbers on the host spare a layer every wait for the device.

    Args:
        cu_q_N: Where each run's queries begin, and where the last ones end: (runs + 1,), int32, on the device of the
            tensors.
        cu_k_N: The same for keys.
        longest_q: The most queries of a run.
        longest_k: The most keys of a run.
        lengths: Queries and keys of each run, for kernels that take one call a run.
    """

    cu_q_N: Tensor
    cu_k_N: Tensor
    longest_q: int
    longest_k: int
    lengths: tuple[tuple[int, int], ...]

    @cached_property
    def keys_for_all(self) -> bool:
        """Does each query see a key of its run, whatever is inside of it?"""
        return all(queries <= keys for queries, keys in self.lengths)


@dataclass(frozen=True, eq=False)
class Positions:
    """True positions of queries and keys, int64, and what is known about their order. Nothing known is always right.

    Args:
        q_pos_BL: Positions of queries; -1: no such row (padding).
        k_pos_BS: Positions of keys; -1: no such slot (padding, an empty slot).
        same_rows: Queries and keys are the same tokens, in rising order: what a square causal kernel needs.
        consecutive: The real rows are consecutive positions in order, both queries and keys, ending together: what
            kernels need that know windows by index only. With `segments`, in every run.
        padded: Some position is -1. False lets kernels skip the check.
        segments: The runs of rows that a `Packed` mask tells apart, in a batch of one. None: nothing is known of them.
        memo: Kernels keep there what follows from positions alone. Shared by branches with the very same positions,
            such as those of the layers of one forward, and by no others.
    """

    q_pos_BL: Tensor
    k_pos_BS: Tensor
    same_rows: bool = False
    consecutive: bool = False
    padded: bool = True
    segments: Segments | None = field(default=None, kw_only=True)
    memo: dict[Any, Any] | None = field(default=None, kw_only=True)
