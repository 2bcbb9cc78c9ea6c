"""A handful of keys for many queries, such as the first tokens of a text: added to the softmax in one pass."""

# B batch, H query heads, G key/value heads, L queries, S keys, D head dim
from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from ..masks import BeyondWindow, ByDistance, Causal, Full, Window
from .base import HALF, Call, Kernel
from .check import checked_kernel
from .reference import Reference

_REFERENCE = Reference()


class TritonFew(Kernel):
    """See the module."""

    name = "triton_few"
    priority = 20
    summary = (
        "a Triton kernel of hf_longctx for at most 64 keys and many queries: any positions, any padding, half precision"
    )
    masks = (Causal, Window, BeyondWindow, Full)
    device = "cuda"
    dtypes = HALF
    softcaps = True
    unequal_dims = True
    head_dims = (256, 1)
    triton = True

    def limits(self, call: Call, q_BHLD: Tensor, k_BGSD: Tensor) -> str | None:
        """See `Kernel`."""
        if k_BGSD.shape[2] > 64:
            return f"{k_BGSD.shape[2]} keys are more than 64"
        return None if call.softcap is None else checked_kernel(self, call, q_BHLD)

    def forward(self, call: Call, q_BHLD: Tensor, k_BGSD: Tensor, v_BGSD: Tensor) -> tuple[Tensor, Tensor]:
        """See `Kernel`."""
        B, H, L, _ = q_BHLD.shape
        out = q_BHLD.new_zeros(B, L, H, v_BGSD.shape[-1])
        lse = q_BHLD.new_full((B, H, L), float("-inf"), dtype=torch.float32)
        return self.merge_(call, q_BHLD, k_BGSD, v_BGSD, out, lse)

    def merge_(
        self,
        call: Call,
        q: Tensor,
        k: Tensor,
        v: Tensor,
        out_BLHD: Tensor,
        lse_BHL: Tensor,
        sink_H: Tensor | None = None,
    ) -> tuple[Tensor, Tensor]:
        """See `Kernel`. In place."""
        if not lse_BHL.is_contiguous():
            return super().merge_(call, q, k, v, out_BLHD, lse_BHL, sink_H)
        from .triton_few import add_few_

        assert isinstance(call.mask, ByDistance)
        q = q if q.stride(-1) == 1 else q.contiguous()
        positions = call.positions.q_pos_BL, call.positions.k_pos_BS
        add_few_(q, k, v, out_BLHD, lse_BHL, *positions, call.scale, *call.mask.distances, call.softcap, sink_H)
        return out_BLHD, lse_BHL

    def gradients(
        self, call: Call, grad_BLHD: Tensor, q: Tensor, k: Tensor, v: Tensor, out_BLHD: Tensor, lse_BHL: Tensor
    ) -> Sequence[Tensor]:
        """See `Kernel`."""
        return _REFERENCE.gradients(call, grad_BLHD, q, k, v, out_BLHD, lse_BHL)
