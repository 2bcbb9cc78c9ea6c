"""A handful of keys for many queries, such as the first tokens of a text: added to the softmax in one pass."""

# B batch, H query heads, G key/value heads, L queries, S keys, D head dim
from __future__ import annotations

import torch
from torch import Tensor

from ..available import TRITON
from ..masks import BeyondWindow, Causal, Full, Mask, TopKeys, Window
from . import reference
from .base import Call

_REFERENCE = reference.Kernel()
ALWAYS = 2**62  # no distance is this long


class Kernel:
    name = "triton_few"
    summary = "our Triton kernel for at most 64 keys and many queries: any positions, any padding, half precision"

    def refuses(self, call: Call, q_BHLD: Tensor, k_BGSD: Tensor) -> str | None:
        if isinstance(call.visible, TopKeys):
            return "keys are chosen per query"
        if not q_BHLD.is_cuda or q_BHLD.dtype not in (torch.float16, torch.bfloat16):
            return "it is for float16 and bfloat16 on a CUDA device"
        if not TRITON or torch.compiler.is_compiling():
            return "Triton is not installed, or torch.compile is tracing"
        if k_BGSD.shape[2] > 64 or q_BHLD.shape[-1] > 256:
            return f"{k_BGSD.shape[2]} keys of dim {q_BHLD.shape[-1]} are more than 64 of 256"
        return None

    def forward(self, call: Call, q_BHLD: Tensor, k_BGSD: Tensor, v_BGSD: Tensor) -> tuple[Tensor, Tensor]:
        B, H, L, D = q_BHLD.shape
        out = q_BHLD.new_zeros(B, L, H, D)
        lse = q_BHLD.new_full((B, H, L), float("-inf"), dtype=torch.float32)
        self.add_(call, q_BHLD, k_BGSD, v_BGSD, out, lse)
        return out, lse

    def add_(self, call: Call, q: Tensor, k: Tensor, v: Tensor, out_BLHD: Tensor, lse_BHL: Tensor) -> None:
        """Merge this branch into an output and a log-sum-exp, in place."""
        from .triton_few import add_few_

        near, far = distances(call.visible)
        q = q if q.stride(-1) == 1 else q.contiguous()
        add_few_(q, k, v, out_BLHD, lse_BHL, call.q_pos_BL, call.k_pos_BS, call.scale, near, far)

    def backward(
        self, call: Call, grad_BLHD: Tensor, q: Tensor, k: Tensor, v: Tensor, out_BLHD: Tensor, lse_BHL: Tensor
    ) -> list[Tensor]:
        return _REFERENCE.backward(call, grad_BLHD, q, k, v, out_BLHD, lse_BHL)


def distances(visible: Mask) -> tuple[int, int]:
    """The pairs that exist, by distance: near <= d < far."""
    match visible:
        case Window(size):
            return 0, size
        case BeyondWindow(size):
            return size, ALWAYS
        case Causal():
            return 0, ALWAYS
        case Full():
            return -ALWAYS, ALWAYS
    raise AssertionError(visible)
