"""cuDNN's fused attention through torch: the fastest plain causal or full attention on Hopper. No windows."""

# B batch, H query heads, G key/value heads, L queries, S keys, D head dim
from __future__ import annotations

import torch
from torch import Tensor

from ..masks import Causal, Full
from .base import Call


class Kernel:
    name = "cudnn"
    summary = "cuDNN SDPA with log-sum-exp: half precision, causal from the first token or full, no padding"

    def refuses(self, call: Call, q_BHLD: Tensor, k_BGSD: Tensor) -> str | None:
        if not q_BHLD.is_cuda or not torch.backends.cudnn.is_available():
            return "tensors are not on a CUDA device with cuDNN"
        if q_BHLD.dtype not in (torch.float16, torch.bfloat16):
            return f"dtype {q_BHLD.dtype} is not float16 or bfloat16"
        if q_BHLD.shape[-1] > 128 or q_BHLD.shape[-1] % 8:
            return f"head dim {q_BHLD.shape[-1]} is over 128 or no multiple of 8"
        if call.padded or not isinstance(call.visible, Causal | Full):
            return "it knows causal or full attention without padding only"
        # its causal mask starts at the first key: only a square one means what we mean
        square = call.regular and q_BHLD.shape[2] == k_BGSD.shape[2]
        if isinstance(call.visible, Causal) and not square:
            return "its causal mask is aligned at the start, so queries and keys must be the same tokens"
        if q_BHLD.shape[2] < 2:
            return "a single query: flash attention splits the keys better"
        return None

    def forward(self, call: Call, q_BHLD: Tensor, k_BGSD: Tensor, v_BGSD: Tensor) -> tuple[Tensor, Tensor]:
        out, lse = self._run(call, q_BHLD, k_BGSD, v_BGSD)[:2]
        return out.transpose(1, 2), lse.view(q_BHLD.shape[:3])

    def backward(
        self, call: Call, grad_BLHD: Tensor, q: Tensor, k: Tensor, v: Tensor, out_BLHD: Tensor, lse_BHL: Tensor
    ) -> list[Tensor]:
        seed = torch.zeros((), dtype=torch.int64, device=q.device)
        dq, dk, dv = torch.ops.aten._scaled_dot_product_cudnn_attention_backward(
            grad_BLHD.to(q.dtype).transpose(1, 2),
            q,
            k,
            v,
            out_BLHD.to(q.dtype).contiguous().transpose(1, 2),
            lse_BHL[..., None].contiguous(),
            seed,
            seed,
            None,
            None,
            None,
            q.shape[2],
            k.shape[2],
            0.0,
            isinstance(call.visible, Causal),
            scale=call.scale,
        )
        return [dq, dk, dv]

    def _run(self, call: Call, q: Tensor, k: Tensor, v: Tensor) -> tuple[Tensor, ...]:
        causal = isinstance(call.visible, Causal)
        return torch.ops.aten._scaled_dot_product_cudnn_attention(q, k, v, None, True, 0.0, causal, scale=call.scale)
