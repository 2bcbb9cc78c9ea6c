"""The blocks of a rank's attention: some of its rows against some of the keys at hand, each by one call of a kernel."""

# H query heads, G key/value heads, L rows of a rank, N keys of a table, E = 2 D: a key and its value, D head dim
from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from ..ops.dtypes import as_dtype
from ..ops.kernels import Call, Kernel, choose
from ..ops.masks import DOCUMENT, Mask, Packed
from ..ops.positions import Positions
from ..ops.segments import segments

Rows = slice | Tensor
Keys = tuple[Tensor, Tensor]  # keys and values


@dataclass(frozen=True, eq=False)
class RankBlock:
    """Rows of a rank, keys of a table, and which of their pairs exist.

    Args:
        rows: Which of the rank's rows.
        columns: Which of the keys at hand.
        positions: Of both.
        mask: Which pairs exist.
        numbers_S: The columns by number, on the host.
        chosen: The call and the kernel of each kind of tensors: all layers of a forward have the same.
    """

    rows: Rows
    columns: Rows
    positions: Positions
    mask: Packed
    numbers_S: Tensor
    chosen: dict[Any, tuple[Call, Kernel]] = field(default_factory=dict)

    @classmethod
    def of(
        cls,
        rows_L: Tensor,
        columns_S: Tensor,
        codes: tuple[Tensor, Tensor],
        lengths: Sequence[tuple[int, int]],
        inside: Mask,
        device: torch.device,
        same_rows: bool = False,
        consecutive: bool = False,
    ) -> RankBlock | None:
        """A block from rows and columns by number, their positions, and the runs of both; None without any pair.

        Each run counts as a document of its own, because a key may be there for several of them.
        """
        if not len(rows_L) or not len(columns_S):
            return None
        sizes = torch.tensor(lengths).unbind(1)
        run_of = (torch.arange(len(lengths)).repeat_interleave(of_each) for of_each in sizes)
        places = (code % DOCUMENT + run * DOCUMENT for code, run in zip(codes, run_of, strict=True))
        q_pos, k_pos = (x[None].to(device, non_blocking=True) for x in places)
        runs = segments(lengths, device)
        positions = Positions(q_pos, k_pos, same_rows, consecutive, padded=False, segments=runs, memo={})
        return cls(compact(rows_L, device), compact(columns_S, device), positions, Packed(inside), columns_S)

    def kernel(self, scale: float, q_BHLD: Tensor, k_BGSD: Tensor) -> tuple[Call, Kernel]:
        """The call of the block's rows against its keys, and the kernel for it."""
        key = scale, q_BHLD.dtype, q_BHLD.shape, k_BGSD.shape
        found = self.chosen.get(key)
        if found is None:
            call = Call(self.positions, self.mask, scale)
            found = self.chosen[key] = call, choose(call, q_BHLD, k_BGSD)
        return found

    def kernel_of_table(self, scale: float, q_BHLD: Tensor, table_SGE: Tensor) -> tuple[Call, Kernel]:
        """The same, for keys of a table."""
        key = scale, q_BHLD.dtype, q_BHLD.shape, table_SGE.shape
        found = self.chosen.get(key)
        if found is None:
            found = self.chosen[key] = self.kernel(scale, q_BHLD, halves(table_SGE)[0])
        return found

    def own(self, k_BGLD: Tensor, v_BGLD: Tensor) -> Keys:
        """The block's keys and values, of those of the rank's rows."""
        return taken(k_BGLD, self.columns, 2), taken(v_BGLD, self.columns, 2)


def table_of(k_BGLD: Tensor, v_BGLD: Tensor) -> Tensor:
    """Keys and values of a rank, row by row, as they travel: (L, G, E), contiguous."""
    return torch.cat([k_BGLD.transpose(1, 2), v_BGLD.transpose(1, 2)], -1).squeeze(0)


def padded(x_N: Tensor, rows: int) -> Tensor:
    """(N, ...) with rows of zeros behind, so many in all."""
    missing = rows - x_N.shape[0]
    return torch.nn.functional.pad(x_N, (0, 0) * (x_N.dim() - 1) + (0, missing)) if missing else x_N


def halves(table_NGE: Tensor) -> tuple[Tensor, Tensor]:
    """Keys and values of a table, (1, G, N, D) each; the same memory."""
    k, v = sides(table_NGE.transpose(0, 1).unsqueeze(0))
    return k, v


def sides(table_E: Tensor) -> Sequence[Tensor]:
    """Keys and values of a table, (..., D) each; the same memory."""
    D = table_E.shape[-1] // 2
    return table_E.split_with_sizes((D, D), -1)  # `split` and `chunk` call several operators for it


def rounded_halves(table_NGE: Tensor, dtype: torch.dtype) -> Keys:
    """`halves`, copied in a dtype, each in memory row by row, as projections want them: one copy of both."""
    N, G, E = table_NGE.shape
    both = table_NGE.view(1, N, G, 2, E // 2).permute(3, 0, 1, 2, 4)
    k, v = both.to(dtype, copy=True, memory_format=torch.contiguous_format).transpose(2, 3).unbind()
    return k, v


@dataclass(frozen=True, eq=False)
class RankTensors:
    """What a rank's part of attention is given; the batch B is 1.

    Args:
        q_BHLD: Queries of all rows of the rank.
        k_BGLD: Keys of the same rows.
        v_BGLD: Values.
        scale: Multiplies q k.
        groups: How many query heads read each key/value head, where it is not the same number for all.
    """

    q_BHLD: Tensor
    k_BGLD: Tensor
    v_BGLD: Tensor
    scale: float
    groups: tuple[int, ...] | None = None


@dataclass(frozen=True, eq=False)
class RankResults:
    """What its backward is given besides: the gradient, the output and the log-sum-exp of the whole softmax.

    `kept` is what the forward has put into its list of that name: all ranks have it, or none.
    """

    grad_BLHD: Tensor
    out_BLHD: Tensor
    lse_BHL: Tensor
    kept: tuple[Tensor, ...] = ()


def taken(x: Tensor, rows: Rows, dim: int) -> Tensor:
    """Some rows in this dim of a tensor; itself where they are all, since every view costs the host some time."""
    if isinstance(rows, slice):
        size = rows.stop - rows.start
        return x if size == x.shape[dim] else x.narrow(dim, rows.start, size)
    return x.index_select(dim, rows)


def add_rows(total: Tensor, rows: Rows, x: Tensor, dim: int) -> None:
    """Add to some rows in this dim of a tensor. A row that is there several times gets several parts."""
    if isinstance(rows, slice):
        taken(total, rows, dim).add_(x)
    else:
        total.index_add_(dim, rows, as_dtype(x, total.dtype))


def compact(numbers: Tensor, device: torch.device) -> Rows:
    """Numbers as a slice if they are successive: then nothing is copied."""
    if bool((numbers.diff() == 1).all()):
        first = int(numbers[0]) if len(numbers) else 0
        return slice(first, first + len(numbers))
    return numbers.to(device, non_blocking=True)
