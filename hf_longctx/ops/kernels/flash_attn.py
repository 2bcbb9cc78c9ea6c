"""The flash-attn package, where it is installed. Not run by our tests: it is admitted by a check on its first use."""

# B batch, H query heads, G key/value heads, L queries, S keys, D head dim
from __future__ import annotations

from functools import cache
from typing import Any

import torch
from torch import Tensor

from ..available import FLASH_ATTN_LACKS
from ..masks import Causal
from .base import Call
from .cuda_flash import Kernel as CudaFlash
from .cuda_flash import Rows, window_of

_CONDITIONS = CudaFlash()


class Kernel:
    name = "flash_attn"
    summary = "the flash-attn package, if installed and if it agrees with the reference on this device"

    def refuses(self, call: Call, q_BHLD: Tensor, k_BGSD: Tensor) -> str | None:
        if FLASH_ATTN_LACKS is not None:
            return FLASH_ATTN_LACKS
        reason = _CONDITIONS.refuses(call, q_BHLD, k_BGSD)
        return reason or _disagreement(q_BHLD.device, q_BHLD.dtype, q_BHLD.shape[-1])

    def forward(self, call: Call, q_BHLD: Tensor, k_BGSD: Tensor, v_BGSD: Tensor) -> tuple[Tensor, Tensor]:
        from flash_attn.flash_attn_interface import _flash_attn_varlen_forward

        rows, cols = Rows(call.q_pos_BL, call.padded), Rows(call.k_pos_BS, call.padded)
        packed = rows.pack(q_BHLD), cols.pack(k_BGSD), cols.pack(v_BGSD)
        out, lse = _flash_attn_varlen_forward(*packed, **_settings(call, rows, cols))[:2]
        lse = torch.where(torch.isinf(lse), float("-inf"), lse)
        return rows.unpack(out), rows.unpack(lse.T, fill=float("-inf")).transpose(1, 2)

    def backward(
        self, call: Call, grad_BLHD: Tensor, q: Tensor, k: Tensor, v: Tensor, out_BLHD: Tensor, lse_BHL: Tensor
    ) -> list[Tensor]:
        from flash_attn.flash_attn_interface import _flash_attn_varlen_backward

        rows, cols = Rows(call.q_pos_BL, call.padded), Rows(call.k_pos_BS, call.padded)
        lse = rows.pack(lse_BHL[..., None])[..., 0].T.contiguous()
        lse = torch.where(lse == float("-inf"), float("inf"), lse)
        packed = rows.pack(q), cols.pack(k), cols.pack(v)
        grad, out = (rows.pack(x.to(q.dtype).transpose(1, 2)) for x in (grad_BLHD, out_BLHD))
        dq, dk, dv = (torch.empty_like(x) for x in packed)
        settings = {**_settings(call, rows, cols), "deterministic": False}
        _flash_attn_varlen_backward(grad, *packed, out, lse, dq, dk, dv, **settings)
        return [rows.unpack(dq).transpose(1, 2), cols.unpack(dk).transpose(1, 2), cols.unpack(dv).transpose(1, 2)]


def _settings(call: Call, rows: Rows, cols: Rows) -> dict[str, Any]:
    left, right = window_of(call)
    return {
        "cu_seqlens_q": rows.starts,
        "cu_seqlens_k": cols.starts,
        "max_seqlen_q": rows.longest,
        "max_seqlen_k": cols.longest,
        "dropout_p": 0.0,
        "softmax_scale": call.scale,
        "causal": isinstance(call.visible, Causal),
        "window_size_left": -1 if left is None else left,
        "window_size_right": -1 if right is None else right,
        "softcap": 0.0,
        "alibi_slopes": None,
    }


@cache
def _disagreement(device: torch.device, dtype: torch.dtype, dim: int) -> str | None:
    """Compare a small windowed attention, values and gradients, with the reference; None if they agree."""
    from .check import disagreement

    return disagreement(Kernel(), device, dtype, dim)
