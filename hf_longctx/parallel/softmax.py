"""The softmax of a rank's rows over several blocks, and its gradients.

Where blocks have different rows, each result is put in its place. Where they share rows, results are merged by their
log-sum-exps, and gradients of queries are summed in fp32 (fp64 for fp64).
"""

# H query heads, G key/value heads, L rows of a rank, S keys of a block, E = 2 D: a key and its value, D head dim
from __future__ import annotations

import torch
from torch import Tensor

from ..ops.dtypes import as_dtype
from ..ops.kernels import Call, Kernel
from ..ops.merge import merge_into
from .blocks import Keys, RankBlock, RankResults, RankTensors, add_rows, halves, sides, taken
from .sums import sum_rows

FP32 = torch.float32


class Attending:
    """The softmax of a rank's rows over one block after the other."""

    def __init__(self, given: RankTensors, apart: bool) -> None:
        self.q, self.scale, self.groups, self.apart = given.q_BHLD, given.scale, given.groups, apart
        self.wide = torch.promote_types(self.q.dtype, FP32)
        self.found: tuple[Tensor, Tensor] | None = None

    def add(self, block: RankBlock, keys: Keys) -> None:
        """Add a block, with its keys and values."""
        k, v = _for_each_query_head(keys, self.groups)
        q = taken(self.q, block.rows, 2)
        call, kernel = block.kernel(self.scale, q, k)
        self._put(block, *kernel.forward(call, q, k, v))

    def add_table(self, block: RankBlock, table_SGE: Tensor) -> None:
        """Add a block, with its keys and values as they travelled, by row."""
        if self.groups is None:
            q = taken(self.q, block.rows, 2)
            call, kernel = block.kernel_of_table(self.scale, q, table_SGE)
            if kernel.by_row:
                k, v = sides(table_SGE)
                out, lse = kernel.forward_rows(call, _rows_of(q), k, v)
                self._put(block, out.unsqueeze(0), lse.unsqueeze(0))
                return
        self.add(block, halves(table_SGE))

    def _put(self, block: RankBlock, out: Tensor, lse: Tensor) -> None:
        """The result of a block in its place, or merged with what was found of its rows."""
        if self.found is None and out.shape[1] == self.q.shape[2]:
            self.found = out, lse
            return
        total, total_lse = self._buffers()
        rows = block.rows
        if self.apart:
            total[:, rows], total_lse[:, :, rows] = as_dtype(out, total.dtype), lse
        elif isinstance(rows, slice):
            merge_into(taken(total, rows, 1), taken(total_lse, rows, 2), out, lse)
        else:
            before = total[:, rows], total_lse[:, :, rows]
            merge_into(*before, out, lse)
            total[:, rows], total_lse[:, :, rows] = before

    def _buffers(self) -> tuple[Tensor, Tensor]:
        """What was found so far, to be overwritten, at first rows without any key; in at least fp32 to be merged."""
        dtype = self.q.dtype if self.apart else self.wide
        if self.found is None:
            B, H, L, D = self.q.shape
            out = self.q.new_zeros(B, L, H, D, dtype=dtype)
            self.found = out, self.q.new_full((B, H, L), float("-inf"), dtype=self.wide)
        self.found = as_dtype(self.found[0], dtype), self.found[1]
        return self.found

    def result(self) -> tuple[Tensor, Tensor]:
        """The output (1, L, H, D), in the dtype of the queries, and the log-sum-exp (1, H, L)."""
        out, lse = self._buffers() if self.found is None else self.found
        return as_dtype(out, self.q.dtype).contiguous(), lse.contiguous()


class Differentiating:
    """The gradients of a softmax over blocks: each block is given the output and the log-sum-exp of the whole."""

    def __init__(self, given: RankTensors, found: RankResults, apart: bool) -> None:
        self.q, self.k, self.scale, self.groups = given.q_BHLD, given.k_BGLD, given.scale, given.groups
        self.found, self.apart = found, apart
        self.wide = torch.promote_types(self.q.dtype, FP32)
        self._dq: Tensor | None = None

    @property
    def dq_BHLD(self) -> Tensor:
        """The gradient of the queries, so far."""
        if self._dq is None:
            self._dq = torch.zeros_like(self.q, dtype=self.q.dtype if self.apart else self.wide)
        return self._dq

    def keys_of(self, block: RankBlock, keys: Keys) -> Keys:
        """The gradients of a block's keys and values, unrounded; that of its queries goes into `dq_BHLD`."""
        dk, dv = self._gradients(block, keys, None)
        if self.groups is None:
            return dk, dv
        # a key/value head was there for several query heads
        split = (x.split_with_sizes(self.groups, 1) for x in (dk, dv))
        dk, dv = (torch.stack([part.sum(1, dtype=self.wide) for part in parts], 1) for parts in split)
        return dk, dv

    def alone(self, block: RankBlock | None, given: RankTensors) -> tuple[Tensor, Tensor, Tensor]:
        """dq, dk and dv where the rank's own keys are all that its rows see; None: it has no rows."""
        keys = given.k_BGLD, given.v_BGLD
        dk, dv = map(torch.zeros_like, keys) if block is None else self.keys_of(block, block.own(*keys))
        return self.dq_BHLD, dk, dv

    def gradient_of(self, block: RankBlock | None, keys: Keys | Tensor, rows: int) -> Tensor:
        """The gradient of a table of so many rows, (N, G, E), as far as a block goes whose keys are of it.

        The keys and values come as such, or as they travelled, by row. Without a block there is no gradient.
        """
        if block is not None and self.groups is None:
            q = taken(self.q, block.rows, 2)
            if isinstance(keys, Tensor):
                chosen = block.kernel_of_table(self.scale, q, keys)
            else:
                chosen = block.kernel(self.scale, q, keys[0])
            if chosen[1].by_row:
                by_row = sides(keys) if isinstance(keys, Tensor) else map(_rows_of, keys)
                return sum_rows(self._by_row(block, chosen, q, *by_row), block, rows, self.wide)
        keys = halves(keys) if isinstance(keys, Tensor) else keys
        in_place = block is not None and isinstance(block.columns, slice) and self.groups is None and not self.apart
        if block is not None and not in_place:
            parts = list(map(_rows_of, self.keys_of(block, keys)))
            return sum_rows(parts, block, rows, self.wide)
        _, G, _, D = self.k.shape
        gradient_NGE = self.k.new_zeros(rows, G, 2 * D, dtype=self.wide)
        if block is not None:  # without a buffer in between
            self._gradients(block, keys, halves(taken(gradient_NGE, block.columns, 0)))
        return gradient_NGE

    def _by_row(
        self, block: RankBlock, chosen: tuple[Call, Kernel], q_BHLD: Tensor, k_SGD: Tensor, v_SGD: Tensor
    ) -> list[Tensor]:
        """The gradients of a block's keys and values, by row; that of its queries goes into `dq_BHLD`."""
        (call, kernel), rows, whole = chosen, block.rows, self.found
        grad, out = (taken(x.squeeze(0), rows, 0) for x in (whole.grad_BLHD, whole.out_BLHD))
        lse = taken(whole.lse_BHL.squeeze(0), rows, 1)
        dq, dk, dv = kernel.gradients_rows(call, grad, _rows_of(q_BHLD), k_SGD, v_SGD, out, lse)
        self._put(block, dq.transpose(0, 1).unsqueeze(0))
        return [dk, dv]

    def _put(self, block: RankBlock, dq: Tensor) -> None:
        """A block's gradient of queries in its place, or added to that of other blocks."""
        if self._dq is None and dq.shape == self.q.shape:
            self._dq = dq if self.apart else as_dtype(dq, self.wide)
        elif self.apart:
            self.dq_BHLD[:, :, block.rows] = as_dtype(dq, self.q.dtype)
        else:
            add_rows(self.dq_BHLD, block.rows, dq, 2)

    def _gradients(self, block: RankBlock, keys: Keys, buffers: Keys | None) -> Keys:
        k, v = _for_each_query_head(keys, self.groups)
        rows, whole = block.rows, self.found
        q = taken(self.q, rows, 2)
        call, kernel = block.kernel(self.scale, q, k)
        grad, out, lse = (
            taken(x, rows, dim) for x, dim in ((whole.grad_BLHD, 1), (whole.out_BLHD, 1), (whole.lse_BHL, 2))
        )
        args = grad, q, k, v, out, lse
        if self.apart:
            dq, dk, dv = kernel.gradients(call, *args)
            self._put(block, dq)
            return dk, dv
        direct = isinstance(rows, slice)
        dq = taken(self.dq_BHLD, rows, 2) if direct else torch.zeros_like(q, dtype=self.wide)
        dk, dv = buffers or (torch.zeros_like(k, dtype=self.wide), torch.zeros_like(v, dtype=self.wide))
        kernel.backward(call, *args, into=(dq, dk, dv))
        if not direct:
            add_rows(self.dq_BHLD, rows, dq, 2)
        return dk, dv


def _rows_of(x_BXLD: Tensor) -> Tensor:
    """(1, heads, L, D) by row: (L, heads, D)."""
    return x_BXLD.squeeze(0).transpose(0, 1)


def _for_each_query_head(keys: Keys, groups: tuple[int, ...] | None) -> Keys:
    """Keys and values as they are, or of groups of unequal sizes, which no kernel takes, once for each query head."""
    if groups is None:
        return keys
    k, v = (torch.cat([x[:, g : g + 1].expand(-1, n, -1, -1) for g, n in enumerate(groups)], 1) for x in keys)
    return k, v
