"""Causal and windowed attention through our Triton kernel: only the band is computed."""

# B batch, H query heads, G key/value heads, L queries, S keys, D head dim
from __future__ import annotations

import torch
from torch import Tensor

from ..available import TRITON
from ..masks import Causal, TopKeys, Window
from .base import Call
from .cuda_flash import Kernel as CudaFlash

_FLASH = CudaFlash()


class Kernel:
    name = "triton_window"
    summary = "our Triton kernel for long windows: half precision, rows in order, no padding; flash's backward"

    def refuses(self, call: Call, q_BHLD: Tensor, k_BGSD: Tensor) -> str | None:
        if isinstance(call.visible, TopKeys) or not isinstance(call.visible, Causal | Window):
            return f"{type(call.visible).__name__} is no window"
        reason = _FLASH.refuses(call, q_BHLD, k_BGSD)
        if reason is not None:
            return reason
        if not TRITON or torch.compiler.is_compiling():
            return "Triton is not installed, or torch.compile is tracing"
        if q_BHLD.shape[-1] > 128 or call.padded:
            return "the batch is padded" if call.padded else f"head dim {q_BHLD.shape[-1]} is over 128"
        if q_BHLD.shape[2] < 16 or q_BHLD.shape[2] > k_BGSD.shape[2]:
            return "too few queries to fill its tiles"
        return None

    def forward(self, call: Call, q_BHLD: Tensor, k_BGSD: Tensor, v_BGSD: Tensor) -> tuple[Tensor, Tensor]:
        from .triton_window import window_attention

        size = call.visible.size if isinstance(call.visible, Window) else k_BGSD.shape[2]
        return window_attention(q_BHLD, k_BGSD, v_BGSD, size, call.scale)

    def backward(
        self, call: Call, grad_BLHD: Tensor, q: Tensor, k: Tensor, v: Tensor, out_BLHD: Tensor, lse_BHL: Tensor
    ) -> list[Tensor]:
        return _FLASH.backward(call, grad_BLHD, q, k, v, out_BLHD, lse_BHL)
