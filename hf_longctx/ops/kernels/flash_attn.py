"""The flash-attn package, where it is installed. No test runs it: a check on its first use admits it."""

# B batch, H query heads, G key/value heads, L queries, S keys, D head dim
from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from ..available import FLASH_ATTN_LACKS
from ..masks import Causal
from .base import Call, inside_of
from .check import checked_kernel
from .cuda_flash import CudaFlash, VarlenRows, window_of


class FlashAttn(CudaFlash):
    """See the module. What it can do is what torch's own flash attention can."""

    name = "flash_attn"
    priority = 50
    softcaps = True
    summary = "the flash-attn package, if installed and if it agrees with the reference on this device"

    def unsupported_reason(self, call: Call, q_BHLD: Tensor, k_BGSD: Tensor) -> str | None:
        """See `Kernel`."""
        return FLASH_ATTN_LACKS or super().unsupported_reason(call, q_BHLD, k_BGSD)

    def limits(self, call: Call, q_BHLD: Tensor, k_BGSD: Tensor) -> str | None:
        """See `Kernel`."""
        return super().limits(call, q_BHLD, k_BGSD) or checked_kernel(self, call, q_BHLD)

    def _forward(
        self, call: Call, rows: VarlenRows, columns: VarlenRows, q_NHD: Tensor, k_NGD: Tensor, v_NGD: Tensor
    ) -> tuple[Tensor, Tensor]:
        from flash_attn.flash_attn_interface import _flash_attn_varlen_forward

        out, lse = _flash_attn_varlen_forward(q_NHD, k_NGD, v_NGD, **_settings(call, rows, columns))[:2]
        return out, lse

    def _backward(self, call: Call, rows: VarlenRows, columns: VarlenRows, *packed: Tensor) -> tuple[Tensor, ...]:
        from flash_attn.flash_attn_interface import _flash_attn_varlen_backward

        grads = tuple(torch.empty_like(x) for x in packed[1:4])
        _flash_attn_varlen_backward(*packed, *grads, **_settings(call, rows, columns), deterministic=False)
        return grads


def _settings(call: Call, rows: VarlenRows, columns: VarlenRows) -> dict[str, Any]:
    left, right = window_of(call)
    return {
        "cu_seqlens_q": rows.starts,
        "cu_seqlens_k": columns.starts,
        "max_seqlen_q": rows.longest,
        "max_seqlen_k": columns.longest,
        "dropout_p": 0.0,
        "softmax_scale": call.scale,
        "causal": isinstance(inside_of(call.mask), Causal),
        "window_size_left": -1 if left is None else left,
        "window_size_right": -1 if right is None else right,
        "softcap": call.softcap or 0.0,
        "alibi_slopes": None,
    }
