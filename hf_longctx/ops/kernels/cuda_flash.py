"""torch's own CUDA flash attention: windows, GQA, padding, documents, log-sum-exp, backward that takes the merged one.

This is the kernel behind `torch.nn.attention.varlen.varlen_attn`, called one level below it: autograd through the
public function's log-sum-exp is silently zero, and its backward cannot be given the merged output.
"""

# B batch, H query heads, G key/value heads, L queries, S keys, D head dim, N real tokens of all rows
from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch import Tensor

from ..masks import Causal, Full, Mask, Packed, Window
from .base import HALF, Call, Kernel, inside_of


class CudaFlash(Kernel):
    """See the module."""

    name = "cuda_flash"
    priority = 60
    summary = "torch's CUDA flash attention (varlen, windows, documents): half precision, rows in order, any padding"
    masks: ClassVar[tuple[type[Mask], ...]] = (Causal, Window, Full)
    packed: ClassVar[tuple[type[Mask], ...]] = (Causal, Window, Full)
    device = "cuda"
    dtypes = HALF
    head_dims = (256, 8)
    by_row = True

    def limits(self, call: Call, q_BHLD: Tensor, k_BGSD: Tensor) -> str | None:
        """See `Kernel`."""
        positions, inside = call.positions, inside_of(call.mask)
        if positions.consecutive or isinstance(inside, Full):
            return None
        if isinstance(inside, Causal) and (positions.same_rows or isinstance(call.mask, Packed)):
            return None
        return "rows are not consecutive positions in order"

    def forward(self, call: Call, q_BHLD: Tensor, k_BGSD: Tensor, v_BGSD: Tensor) -> tuple[Tensor, Tensor]:
        """See `Kernel`."""
        rows, columns = varlen(call)
        out, lse = self._of_rows(call, rows, columns, rows.pack(q_BHLD), columns.pack(k_BGSD), columns.pack(v_BGSD))
        return rows.unpack(out), rows.unpack_lse(lse)

    def forward_rows(self, call: Call, q_LHD: Tensor, k_SGD: Tensor, v_SGD: Tensor) -> tuple[Tensor, Tensor]:
        """See `Kernel`."""
        return self._of_rows(call, *varlen(call), q_LHD, k_SGD, v_SGD)

    def gradients(
        self, call: Call, grad_BLHD: Tensor, q: Tensor, k: Tensor, v: Tensor, out_BLHD: Tensor, lse_BHL: Tensor
    ) -> list[Tensor]:
        """See `Kernel`."""
        rows, columns = varlen(call)
        packed = rows.flat(grad_BLHD), rows.pack(q), columns.pack(k), columns.pack(v), rows.flat(out_BLHD)
        dq, dk, dv = self._gradients_of_rows(call, rows, columns, *packed, rows.pack_lse(lse_BHL))
        return [rows.unpack(dq).transpose(1, 2), columns.unpack(dk).transpose(1, 2), columns.unpack(dv).transpose(1, 2)]

    def gradients_rows(
        self, call: Call, grad_LHD: Tensor, q: Tensor, k: Tensor, v: Tensor, out_LHD: Tensor, lse_HL: Tensor
    ) -> tuple[Tensor, ...]:
        """See `Kernel`."""
        return self._gradients_of_rows(call, *varlen(call), grad_LHD, q, k, v, out_LHD, lse_HL.contiguous())

    def _of_rows(self, call: Call, rows: VarlenRows, columns: VarlenRows, *qkv: Tensor) -> tuple[Tensor, Tensor]:
        out, lse = self._forward(call, rows, columns, *qkv)
        # flash says +inf for a row without keys
        return out, lse if all_see_keys(call) else torch.where(torch.isinf(lse), float("-inf"), lse)

    def _gradients_of_rows(
        self,
        call: Call,
        rows: VarlenRows,
        columns: VarlenRows,
        grad: Tensor,
        q: Tensor,
        k: Tensor,
        v: Tensor,
        out: Tensor,
        lse: Tensor,
    ) -> tuple[Tensor, ...]:
        if not all_see_keys(call):
            lse = torch.where(lse == float("-inf"), float("inf"), lse)
        grad, out = (x if x.dtype == q.dtype else x.to(q.dtype) for x in (grad, out))
        return self._backward(call, rows, columns, grad, q, k, v, out, lse)

    def _forward(
        self, call: Call, rows: VarlenRows, columns: VarlenRows, q_NHD: Tensor, k_NGD: Tensor, v_NGD: Tensor
    ) -> tuple[Tensor, Tensor]:
        left, right = window_of(call)
        out, lse = torch.ops.aten._flash_attention_forward(
            q_NHD,
            k_NGD,
            v_NGD,
            rows.starts,
            columns.starts,
            rows.longest,
            columns.longest,
            0.0,
            isinstance(inside_of(call.mask), Causal),
            False,
            scale=call.scale,
            window_size_left=left,
            window_size_right=right,
        )[:2]
        return out, lse

    def _backward(self, call: Call, rows: VarlenRows, columns: VarlenRows, *packed: Tensor) -> tuple[Tensor, ...]:
        """dq, dk, dv from the gradient, q, k, v, the output and the log-sum-exp, all of them packed."""
        left, right = window_of(call)
        dq, dk, dv = torch.ops.aten._flash_attention_backward(
            *packed,
            rows.starts,
            columns.starts,
            rows.longest,
            columns.longest,
            0.0,
            isinstance(inside_of(call.mask), Causal),
            *_of_dropout(call, packed[0]),
            scale=call.scale,
            window_size_left=left,
            window_size_right=right,
        )
        return dq, dk, dv


def window_of(call: Call) -> tuple[int | None, int | None]:
    """Flash attention's window (left, right), inclusive, in indices aligned at the end; None: no window."""
    inside = inside_of(call.mask)
    return (inside.size - 1, 0) if isinstance(inside, Window) else (None, None)


def all_see_keys(call: Call) -> bool:
    """Is it known that each query sees a key? Of documents that end together it is where none has fewer keys."""
    segments = call.positions.segments
    if segments is None or not isinstance(call.mask, Packed):
        return call.positions.same_rows and not call.positions.padded
    return segments.keys_for_all


def varlen(call: Call) -> tuple[VarlenRows, VarlenRows]:
    """Queries and keys in flash attention's varlen form."""
    positions = call.positions
    if isinstance(call.mask, Packed) and positions.segments is not None:
        found: tuple[VarlenRows, VarlenRows] = _kept(call, "runs", _runs)
        return found
    return VarlenRows.of(positions.q_pos_BL, positions.padded), VarlenRows.of(positions.k_pos_BS, positions.padded)


def _runs(call: Call) -> tuple[VarlenRows, VarlenRows]:
    positions, segments = call.positions, call.positions.segments
    assert segments is not None
    return (
        VarlenRows(1, positions.q_pos_BL.shape[1], segments.cu_q_N, segments.longest_q),
        VarlenRows(1, positions.k_pos_BS.shape[1], segments.cu_k_N, segments.longest_k),
    )


def _of_dropout(call: Call, like: Tensor) -> tuple[Tensor, Tensor]:
    """The states of random numbers that flash attention's backward asks for, and does not read without dropout."""

    def made(_: Call) -> tuple[Tensor, Tensor]:
        return torch.empty(2, dtype=torch.uint64, device=like.device), torch.empty(0, device=like.device)

    found: tuple[Tensor, Tensor] = _kept(call, ("dropout", like.device, type(like)), made)
    return found


def _kept(call: Call, name: Any, make: Callable[[Call], Any]) -> Any:
    """What layers with the same positions share, made by the first: each of these takes the host some time."""
    memo = call.positions.memo
    if memo is None or torch.compiler.is_compiling():
        return make(call)
    key = __name__, name, call.positions.segments
    if key not in memo:
        memo[key] = make(call)
    return memo[key]


@dataclass(frozen=True, eq=False)
class VarlenRows:
    """The real tokens of a batch, one row or document after the other, as flash attention's varlen form wants them.

    Args:
        batch: Rows of the batch.
        length: Slots of a row.
        starts: Where each row or document begins among the real tokens, and where the last one ends; int32.
        longest: The most tokens of one.
        real_BX: The slots that hold a token; None: all.
    """

    batch: int
    length: int
    starts: Tensor
    longest: int
    real_BX: Tensor | None = None

    @classmethod
    def of(cls, pos_BX: Tensor, padded: bool) -> VarlenRows:
        """Rows of such positions. Padded ones are counted, for which the host waits."""
        batch, length = pos_BX.shape
        real = (pos_BX >= 0) if padded else None
        lengths = torch.full((batch,), length, device=pos_BX.device) if real is None else real.sum(1)
        starts = torch.nn.functional.pad(lengths.cumsum(0), (1, 0)).to(torch.int32)
        return cls(batch, length, starts, length if real is None else int(lengths.max()), real)

    def pack(self, x_BHXD: Tensor) -> Tensor:
        """(B, H, X, D) to (N, H, D)."""
        return self.flat(x_BHXD.transpose(1, 2))

    def flat(self, x_BX: Tensor) -> Tensor:
        """(B, X, ...) to (N, ...)."""
        if self.real_BX is not None:
            return x_BX[self.real_BX]
        return x_BX[0] if self.batch == 1 else x_BX.flatten(0, 1)  # the host feels every view

    def unpack(self, x_N: Tensor, fill: Any = 0.0) -> Tensor:
        """(N, ...) to (B, X, ...), `fill` where there is no token."""
        if self.real_BX is None:
            return x_N[None] if self.batch == 1 else x_N.unflatten(0, (self.batch, self.length))
        full = x_N.new_full((self.batch, self.length, *x_N.shape[1:]), fill)
        full[self.real_BX] = x_N
        return full

    def pack_lse(self, lse_BHX: Tensor) -> Tensor:
        """(B, H, X) to (H, N), contiguous."""
        if self.batch == 1 and self.real_BX is None:
            return lse_BHX[0].contiguous()
        return self.flat(lse_BHX.transpose(1, 2)).T.contiguous()

    def unpack_lse(self, lse_HN: Tensor) -> Tensor:
        """(H, N) to (B, H, X), -inf where there is no token."""
        if self.batch == 1 and self.real_BX is None:
            return lse_HN[None]
        return self.unpack(lse_HN.T, fill=float("-inf")).transpose(1, 2)
