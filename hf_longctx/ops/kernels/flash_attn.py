"""The flash-attn package, where it is installed. Not run by our tests: it is admitted by a check on its first use."""

# B batch, H query heads, G key/value heads, L queries, S keys, D head dim
from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from ..available import FLASH_ATTN_LACKS
from ..checked import checked_once
from ..masks import Causal
from .base import Call
from .check import check_kernel
from .cuda_flash import CudaFlash, VarlenRows, varlen, window_of


class FlashAttn(CudaFlash):
    """See the module. What it can do is what torch's own flash attention can."""

    name = "flash_attn"
    summary = "the flash-attn package, if installed and if it agrees with the reference on this device"

    def unsupported_reason(self, call: Call, q_BHLD: Tensor, k_BGSD: Tensor) -> str | None:
        """See `Kernel`."""
        return FLASH_ATTN_LACKS or super().unsupported_reason(call, q_BHLD, k_BGSD)

    def limits(self, call: Call, q_BHLD: Tensor, k_BGSD: Tensor) -> str | None:
        """See `Kernel`."""
        kind = q_BHLD.device, q_BHLD.dtype, q_BHLD.shape[-1]
        return super().limits(call, q_BHLD, k_BGSD) or checked_once(self, kind, lambda: check_kernel(self, *kind))

    def forward(self, call: Call, q_BHLD: Tensor, k_BGSD: Tensor, v_BGSD: Tensor) -> tuple[Tensor, Tensor]:
        """See `Kernel`."""
        from flash_attn.flash_attn_interface import _flash_attn_varlen_forward

        rows, columns = varlen(call.positions)
        packed = rows.pack(q_BHLD), columns.pack(k_BGSD), columns.pack(v_BGSD)
        out, lse = _flash_attn_varlen_forward(*packed, **_settings(call, rows, columns))[:2]
        lse = torch.where(torch.isinf(lse), float("-inf"), lse)
        return rows.unpack(out), rows.unpack(lse.T, fill=float("-inf")).transpose(1, 2)

    def gradients(
        self, call: Call, grad_BLHD: Tensor, q: Tensor, k: Tensor, v: Tensor, out_BLHD: Tensor, lse_BHL: Tensor
    ) -> list[Tensor]:
        """See `Kernel`."""
        from flash_attn.flash_attn_interface import _flash_attn_varlen_backward

        rows, columns = varlen(call.positions)
        lse = rows.pack(lse_BHL[..., None])[..., 0].T.contiguous()
        lse = torch.where(lse == float("-inf"), float("inf"), lse)
        packed = rows.pack(q), columns.pack(k), columns.pack(v)
        grad, out = (rows.pack(x.to(q.dtype).transpose(1, 2)) for x in (grad_BLHD, out_BLHD))
        dq, dk, dv = (torch.empty_like(x) for x in packed)
        settings = {**_settings(call, rows, columns), "deterministic": False}
        _flash_attn_varlen_backward(grad, *packed, out, lse, dq, dk, dv, **settings)
        return [rows.unpack(dq).transpose(1, 2), columns.unpack(dk).transpose(1, 2), columns.unpack(dv).transpose(1, 2)]


def _settings(call: Call, rows: VarlenRows, columns: VarlenRows) -> dict[str, Any]:
    left, right = window_of(call)
    return {
        "cu_seqlens_q": rows.starts,
        "cu_seqlens_k": columns.starts,
        "max_seqlen_q": rows.longest,
        "max_seqlen_k": columns.longest,
        "dropout_p": 0.0,
        "softmax_scale": call.scale,
        "causal": isinstance(call.mask, Causal),
        "window_size_left": -1 if left is None else left,
        "window_size_right": -1 if right is None else right,
        "softcap": 0.0,
        "alibi_slopes": None,
    }
