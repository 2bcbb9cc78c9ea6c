"""The blocks of a rank's attention: some of its rows against some of the keys at hand, each by one call of a kernel."""

# H query heads, G key/value heads, L rows of a rank, N keys of a table, E = 2 D: a key and its value, D head dim
from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from ..ops.kernels import Call, Kernel, choose
from ..ops.masks import DOCUMENT, Mask, Packed
from ..ops.merge import merge
from ..ops.positions import Positions
from ..ops.segments import segments

Rows = slice | Tensor
FP32 = torch.float32


@dataclass(frozen=True, eq=False)
class RankBlock:
    """Rows of a rank, keys of a table, and which of their pairs exist; `positions` are those of both."""

    rows: Rows
    columns: Rows
    positions: Positions
    mask: Packed

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
        return cls(compact(rows_L, device), compact(columns_S, device), positions, Packed(inside))


def table_of(k_BGLD: Tensor, v_BGLD: Tensor) -> Tensor:
    """Keys and values of a rank, row by row, as they travel: (L, G, E), contiguous."""
    return torch.cat([k_BGLD[0].transpose(0, 1), v_BGLD[0].transpose(0, 1)], -1).contiguous()


def padded(x_N: Tensor, rows: int) -> Tensor:
    """(N, ...) with rows of zeros behind, so many in all."""
    missing = rows - len(x_N)
    return torch.nn.functional.pad(x_N, (0, 0) * (x_N.dim() - 1) + (0, missing)) if missing else x_N


def halves(table_NGE: Tensor) -> tuple[Tensor, Tensor]:
    """Keys and values of a table, (1, G, N, D) each; the same memory."""
    k, v = table_NGE.transpose(0, 1)[None].chunk(2, -1)
    return k, v


@dataclass(frozen=True, eq=False)
class RankTensors:
    """What a rank's part of attention is given; the batch B is 1.

    Args:
        q_BHLD: Queries of all rows of the rank.
        k_BGLD: Keys of the same rows.
        v_BGLD: Values.
        scale: Multiplies q k.
        heads_H: The key/value head of each query head, where they are not groups of one size.
    """

    q_BHLD: Tensor
    k_BGLD: Tensor
    v_BGLD: Tensor
    scale: float
    heads_H: Tensor | None = None


@dataclass(frozen=True, eq=False)
class RankResults:
    """What its backward is given besides: the gradient, the output and the log-sum-exp of the whole softmax."""

    grad_BLHD: Tensor
    out_BLHD: Tensor
    lse_BHL: Tensor


class Attending:
    """The softmax of a rank's rows over one block after the other."""

    def __init__(self, given: RankTensors) -> None:
        self.q, self.scale, self.heads = given.q_BHLD, given.scale, given.heads_H
        self.wide = torch.promote_types(self.q.dtype, FP32)
        self.found: tuple[Tensor, Tensor] | None = None

    def add(self, block: RankBlock | None, table_NGE: Tensor) -> None:
        """Merge a block into what was found so far."""
        if block is None:
            return
        k, v = halves(_read(block, table_NGE, self.heads))
        q = self.q[:, :, block.rows]
        call, kernel = _kernel(block, self.scale, q, k)
        out, lse = kernel.forward(call, q, k, v)
        if self.found is None and out.shape[1] == self.q.shape[2]:
            self.found = out, lse
            return
        total, total_lse = self._wide()
        rows = block.rows
        merged = merge(total[:, rows], total_lse[:, :, rows], out.to(self.wide), lse)
        total[:, rows], total_lse[:, :, rows] = merged

    def _wide(self) -> tuple[Tensor, Tensor]:
        """What was found so far, in at least fp32, to be overwritten; at first rows without any key."""
        if self.found is None:
            B, H, L, D = self.q.shape
            out = self.q.new_zeros(B, L, H, D, dtype=self.wide)
            self.found = out, self.q.new_full((B, H, L), float("-inf"), dtype=self.wide)
        self.found = self.found[0].to(self.wide), self.found[1]
        return self.found

    def result(self) -> tuple[Tensor, Tensor]:
        """The output (1, L, H, D), in the dtype of the queries, and the log-sum-exp (1, H, L)."""
        out, lse = self._wide() if self.found is None else self.found
        return out.to(self.q.dtype).contiguous(), lse.contiguous()


class Differentiating:
    """The gradients of a softmax over blocks: each block is given the output and the log-sum-exp of the whole.

    `dq_BHLD` is summed in fp32 (fp64 for fp64).
    """

    def __init__(self, given: RankTensors, found: RankResults) -> None:
        self.q, self.scale, self.heads, self.found = given.q_BHLD, given.scale, given.heads_H, found
        self.wide = torch.promote_types(self.q.dtype, FP32)
        self.dq_BHLD = torch.zeros_like(self.q, dtype=self.wide, memory_format=torch.contiguous_format)

    def zeros(self, table_NGE: Tensor) -> Tensor:
        """A buffer for the gradient of a table."""
        return torch.zeros_like(table_NGE, dtype=self.wide)

    def add(self, block: RankBlock | None, table_NGE: Tensor, gradient_NGE: Tensor) -> None:
        """Add a block's part to `dq_BHLD` and to the gradient of its table."""
        if block is None:
            return
        rows, columns = block.rows, block.columns
        table, q = _read(block, table_NGE, self.heads), self.q[:, :, rows]
        k, v = halves(table)
        call, kernel = _kernel(block, self.scale, q, k)
        # without a copy where the block's rows and keys are a stretch of the buffers
        direct_q, direct_k = isinstance(rows, slice), isinstance(columns, slice) and self.heads is None
        dq = self.dq_BHLD[:, :, rows] if direct_q else torch.zeros_like(q, dtype=self.wide)
        part = gradient_NGE[columns] if direct_k else self.zeros(table)
        whole = self.found.out_BLHD[:, rows], self.found.lse_BHL[:, :, rows]
        kernel.backward(call, self.found.grad_BLHD[:, rows], q, k, v, *whole, into=(dq, *halves(part)))
        if not direct_q:
            self.dq_BHLD[:, :, rows] += dq
        if direct_k:
            return
        if self.heads is not None:
            part = part.new_zeros(len(part), *gradient_NGE.shape[1:]).index_add_(1, self.heads, part)
        if isinstance(columns, slice):
            gradient_NGE[columns] += part
        else:
            gradient_NGE.index_add_(0, columns, part)  # a key may be there for several runs


def _read(block: RankBlock, table_NGE: Tensor, heads_H: Tensor | None) -> Tensor:
    table = table_NGE[block.columns]
    return table if heads_H is None else table[:, heads_H]


def _kernel(block: RankBlock, scale: float, q: Tensor, k: Tensor) -> tuple[Call, Kernel]:
    call = Call(block.positions, block.mask, scale)
    return call, choose(call, q, k)


def compact(numbers: Tensor, device: torch.device) -> Rows:
    """Numbers as a slice if they are successive: then nothing is copied."""
    if bool((numbers.diff() == 1).all()):
        first = int(numbers[0]) if len(numbers) else 0
        return slice(first, first + len(numbers))
    return numbers.to(device, non_blocking=True)
