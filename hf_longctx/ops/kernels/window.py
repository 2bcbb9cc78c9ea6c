"""Causal and windowed attention through a Triton kernel: only the band is computed."""

# B batch, H query heads, G key/value heads, L queries, S keys, D head dim
from __future__ import annotations

from torch import Tensor

from ..masks import Causal, Window
from .base import Call
from .cuda_flash import CudaFlash


class TritonWindow(CudaFlash):
    """See the module. Flash attention's conditions and backward."""

    name = "triton_window"
    priority = 40
    summary = (
        "a Triton kernel of hf_longctx for long windows: half precision, rows in order, no padding; flash's backward"
    )
    masks = (Causal, Window)
    head_dims = (128, 8)
    triton = True

    def limits(self, call: Call, q_BHLD: Tensor, k_BGSD: Tensor) -> str | None:
        """See `Kernel`."""
        if call.positions.padded:
            return "the batch is padded"
        if q_BHLD.shape[2] < 16 or q_BHLD.shape[2] > k_BGSD.shape[2]:
            return "too few queries to fill its tiles"
        return super().limits(call, q_BHLD, k_BGSD)

    def forward(self, call: Call, q_BHLD: Tensor, k_BGSD: Tensor, v_BGSD: Tensor) -> tuple[Tensor, Tensor]:
        """See `Kernel`."""
        from .triton_window import window_attention

        size = call.mask.size if isinstance(call.mask, Window) else k_BGSD.shape[2]
        return window_attention(q_BHLD, k_BGSD, v_BGSD, size, call.scale)
