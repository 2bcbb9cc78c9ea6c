"""cuDNN's fused attention through torch: the fastest on Hopper. No windows; packed documents in one call each."""

# B batch, H query heads, G key/value heads, L queries, S keys, D head dim
from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from ..dtypes import as_dtype
from ..masks import Causal, Full, Packed
from . import runs
from .base import HALF, Call, Kernel

# cuDNN builds a graph for every new pair of lengths, which takes tens of milliseconds or more; documents of ever new
# lengths would wait for that in every step. One document that is cut by zigzag over two cards has up to four of them
FEW = 4


class Cudnn(Kernel):
    """See the module."""

    name = "cudnn"
    priority = 30
    summary = "cuDNN SDPA with log-sum-exp: half precision, causal from the first token or full, no padding"
    masks = (Causal, Full)
    packed = (Causal, Full)
    device = "cuda"
    dtypes = HALF
    head_dims = (128, 8)
    pads = False

    def limits(self, call: Call, q_BHLD: Tensor, k_BGSD: Tensor) -> str | None:
        """See `Kernel`."""
        if not torch.backends.cudnn.is_available():
            return "cuDNN is not available"
        if isinstance(call.mask, Packed):
            single = any(min(size) < 2 for size in runs.sizes(call))
            return "a run of rows has a single query or key, which flash attention does better" if single else None
        if isinstance(call.mask, Causal) and not call.positions.same_rows:
            return "its causal mask is aligned at the start, so queries and keys must be the same tokens"
        if q_BHLD.shape[2] < 2:
            return "a single query: flash attention splits the keys better"
        return None

    def slower_reason(self, call: Call, q_BHLD: Tensor, k_BGSD: Tensor) -> str | None:
        """See `Kernel`."""
        if not isinstance(call.mask, Packed):
            return None
        reason = runs.short(call, q_BHLD)
        if reason is None and len(runs.sizes(call)) > FEW:
            return f"documents of more than {FEW} different lengths would wait for cuDNN to build a graph for each"
        return reason

    def forward(self, call: Call, q_BHLD: Tensor, k_BGSD: Tensor, v_BGSD: Tensor) -> tuple[Tensor, Tensor]:
        """See `Kernel`."""
        if isinstance(call.mask, Packed):
            return runs.forward(self, call, q_BHLD, k_BGSD, v_BGSD)
        causal = isinstance(call.mask, Causal)
        run = torch.ops.aten._scaled_dot_product_cudnn_attention
        out, lse = run(q_BHLD, k_BGSD, v_BGSD, None, True, 0.0, causal, scale=call.scale)[:2]
        return out.transpose(1, 2), lse.view(q_BHLD.shape[:3])

    def gradients(
        self, call: Call, grad_BLHD: Tensor, q: Tensor, k: Tensor, v: Tensor, out_BLHD: Tensor, lse_BHL: Tensor
    ) -> list[Tensor]:
        """See `Kernel`."""
        if isinstance(call.mask, Packed):
            return runs.gradients(self, call, (grad_BLHD, q, k, v, out_BLHD, lse_BHL))
        seed = torch.empty((), dtype=torch.int64, device=q.device)  # of dropout, which there is none of
        grad, out = (as_dtype(x, q.dtype) for x in (grad_BLHD, out_BLHD))
        dq, dk, dv = torch.ops.aten._scaled_dot_product_cudnn_attention_backward(
            grad.transpose(1, 2),
            q,
            k,
            v,
            out.contiguous().transpose(1, 2),
            lse_BHL.contiguous().unsqueeze(-1),
            seed,
            seed,
            None,
            None,
            None,
            q.shape[2],
            k.shape[2],
            0.0,
            isinstance(call.mask, Causal),
            scale=call.scale,
        )
        return [dq, dk, dv]

    def add_gradients(self, call: Call, given: Sequence[Tensor], into: Sequence[Tensor]) -> None:
        """See `Kernel`. Each run is added where it belongs, without buffers for all of them in between."""
        if isinstance(call.mask, Packed):
            runs.add_gradients(self, call, given, into)
        else:
            super().add_gradients(call, given, into)
