"""Causal and windowed attention through a Triton kernel: only the band is computed."""

# B batch, H query heads, G key/value heads, L queries, S keys, D head dim
from __future__ import annotations

from torch import Tensor

from ..masks import Causal, Packed, Window
from ..widths import widened
from . import runs
from .base import Call
from .blocked import Blocked
from .check import checked_kernel
from .cuda_flash import CudaFlash

SMALL = 128  # head dims whose tiles fit the shared memory of every card that bfloat16 runs on
_BLOCKED = Blocked()


class TritonWindow(CudaFlash):
    """See the module. Flash attention's conditions and backward; with a cap, which flash has not, that of blocks."""

    name = "triton_window"
    priority = 40
    summary = (
        "a Triton kernel of hf_longctx for long windows: half precision, rows in order, no padding; flash's backward"
    )
    masks = (Causal, Window)
    packed = (Window,)
    softcaps = True
    pads = False
    unequal_dims = True
    head_dims = (256, 8)
    triton = True
    by_row = False

    def limits(self, call: Call, q_BHLD: Tensor, k_BGSD: Tensor) -> str | None:
        """See `Kernel`."""
        packed = isinstance(call.mask, Packed)
        sizes = runs.sizes(call) if packed else {(q_BHLD.shape[2], k_BGSD.shape[2])}
        if any(queries < 16 or queries > keys for queries, keys in sizes):
            return "too few queries to fill its tiles"
        reason = super().limits(call, q_BHLD, k_BGSD)
        if reason is not None or (call.softcap is None and q_BHLD.shape[-1] <= SMALL):
            return reason
        return checked_kernel(self, call, q_BHLD)

    def slower_reason(self, call: Call, q_BHLD: Tensor, k_BGSD: Tensor) -> str | None:
        """See `Kernel`."""
        return runs.short(call, q_BHLD) if isinstance(call.mask, Packed) else None

    def forward(self, call: Call, q_BHLD: Tensor, k_BGSD: Tensor, v_BGSD: Tensor) -> tuple[Tensor, Tensor]:
        """See `Kernel`."""
        if isinstance(call.mask, Packed):
            return runs.forward(self, call, q_BHLD, k_BGSD, v_BGSD)
        from .triton_window import window_attention

        size = call.mask.size if isinstance(call.mask, Window) else k_BGSD.shape[2]
        return window_attention(q_BHLD, k_BGSD, v_BGSD, size, call.scale, call.softcap)

    def gradients(
        self, call: Call, grad_BLHD: Tensor, q: Tensor, k: Tensor, v: Tensor, out_BLHD: Tensor, lse_BHL: Tensor
    ) -> list[Tensor]:
        """See `Kernel`."""
        if call.softcap is not None:
            return _BLOCKED.gradients(call, grad_BLHD, q, k, v, out_BLHD, lse_BHL)
        width = max(q.shape[-1], v.shape[-1])
        grad, q_, k_, v_, out = (widened(x, width) for x in (grad_BLHD, q, k, v, out_BLHD))
        grads = super().gradients(call, grad, q_, k_, v_, out, lse_BHL)
        return [found[..., : x.shape[-1]] for found, x in zip(grads, (q, k, v), strict=True)]
