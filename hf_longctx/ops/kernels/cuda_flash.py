"""torch's own CUDA flash attention: windows, GQA, padding, log-sum-exp, and a backward that takes the merged one.

This is the kernel behind `torch.nn.attention.varlen.varlen_attn`, called one level below it: autograd through the
public function's log-sum-exp is silently zero, and its backward cannot be given the merged output.
"""

# B batch, H query heads, G key/value heads, L queries, S keys, D head dim, N real tokens of all rows
from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from ..masks import Causal, Full, TopKeys, Window
from .base import Call


class Kernel:
    name = "cuda_flash"
    summary = "torch's CUDA flash attention (varlen, windows): half precision, rows in order, any padding"

    def refuses(self, call: Call, q_BHLD: Tensor, k_BGSD: Tensor) -> str | None:
        if not q_BHLD.is_cuda:
            return "tensors are not on a CUDA device"
        if q_BHLD.dtype not in (torch.float16, torch.bfloat16):
            return f"dtype {q_BHLD.dtype} is not float16 or bfloat16"
        if q_BHLD.shape[-1] > 256 or q_BHLD.shape[-1] % 8:
            return f"head dim {q_BHLD.shape[-1]} is over 256 or no multiple of 8"
        if isinstance(call.visible, TopKeys) or not isinstance(call.visible, Causal | Window | Full):
            return f"{type(call.visible).__name__} cannot be said as a window of indices"
        if not call.regular and not isinstance(call.visible, Full):
            return "rows are not consecutive positions in order"
        return None

    def forward(self, call: Call, q_BHLD: Tensor, k_BGSD: Tensor, v_BGSD: Tensor) -> tuple[Tensor, Tensor]:
        rows, cols = Rows(call.q_pos_BL, call.padded), Rows(call.k_pos_BS, call.padded)
        left, right = window_of(call)
        out, lse = torch.ops.aten._flash_attention_forward(
            rows.pack(q_BHLD),
            cols.pack(k_BGSD),
            cols.pack(v_BGSD),
            rows.starts,
            cols.starts,
            rows.longest,
            cols.longest,
            0.0,
            isinstance(call.visible, Causal),
            False,
            scale=call.scale,
            window_size_left=left,
            window_size_right=right,
        )[:2]
        lse = torch.where(torch.isinf(lse), float("-inf"), lse)  # flash says +inf for a row without keys
        return rows.unpack(out), rows.unpack(lse.T, fill=float("-inf")).transpose(1, 2)

    def backward(
        self, call: Call, grad_BLHD: Tensor, q: Tensor, k: Tensor, v: Tensor, out_BLHD: Tensor, lse_BHL: Tensor
    ) -> list[Tensor]:
        rows, cols = Rows(call.q_pos_BL, call.padded), Rows(call.k_pos_BS, call.padded)
        left, right = window_of(call)
        lse = rows.pack(lse_BHL[..., None])[..., 0].T.contiguous()
        lse = torch.where(lse == float("-inf"), float("inf"), lse)
        seed = torch.zeros(2, dtype=torch.uint64, device=q.device)
        dq, dk, dv = torch.ops.aten._flash_attention_backward(
            rows.pack(grad_BLHD.to(q.dtype).transpose(1, 2)),
            rows.pack(q),
            cols.pack(k),
            cols.pack(v),
            rows.pack(out_BLHD.to(q.dtype).transpose(1, 2)),
            lse,
            rows.starts,
            cols.starts,
            rows.longest,
            cols.longest,
            0.0,
            isinstance(call.visible, Causal),
            seed,
            torch.empty(0, device=q.device),
            scale=call.scale,
            window_size_left=left,
            window_size_right=right,
        )
        return [rows.unpack(dq).transpose(1, 2), cols.unpack(dk).transpose(1, 2), cols.unpack(dv).transpose(1, 2)]


def window_of(call: Call) -> tuple[int | None, int | None]:
    """Flash attention's window (left, right), inclusive, in indices aligned at the end; None: no window."""
    return (call.visible.size - 1, 0) if isinstance(call.visible, Window) else (None, None)


class Rows:
    """The real tokens of a batch, packed one row behind the other as flash attention's varlen form wants them."""

    def __init__(self, pos_BX: Tensor, padded: bool) -> None:
        self.batch, self.length = pos_BX.shape
        self.real: Tensor | None = (pos_BX >= 0) if padded else None
        if self.real is None:
            lengths = torch.full((self.batch,), self.length, device=pos_BX.device)
            self.longest = self.length
        else:
            lengths = self.real.sum(1)
            self.longest = int(lengths.max())
        self.starts = torch.nn.functional.pad(lengths.cumsum(0), (1, 0)).to(torch.int32)

    def pack(self, x_BHXD: Tensor) -> Tensor:
        """(B, H, X, D) -> (N, H, D)"""
        x = x_BHXD.transpose(1, 2)
        return x.flatten(0, 1) if self.real is None else x[self.real]

    def unpack(self, x_N: Tensor, fill: Any = 0.0) -> Tensor:
        """(N, ...) -> (B, X, ...), `fill` where there is no token"""
        if self.real is None:
            return x_N.unflatten(0, (self.batch, self.length))
        full = x_N.new_full((self.batch, self.length, *x_N.shape[1:]), fill)
        full[self.real] = x_N
        return full
