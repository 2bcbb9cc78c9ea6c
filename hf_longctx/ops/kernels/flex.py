"""FlexAttention: any mask by true position, compiled; for irregular rows of one shape on a GPU, asked for by name."""

# B batch, H query heads, G key/value heads, L queries, S keys, D head dim
from __future__ import annotations

from functools import lru_cache
from typing import Any

import torch
from torch import Tensor
from torch.nn.attention import flex_attention as fa

from ..masks import TopKeys
from .base import Call


class Kernel:
    name = "flex"
    summary = "compiled FlexAttention: any mask, any positions; compiles for every new shape, so by name only"

    def refuses(self, call: Call, q_BHLD: Tensor, k_BGSD: Tensor) -> str | None:
        if isinstance(call.visible, TopKeys):
            return "keys are chosen per query"
        if not q_BHLD.is_cuda:
            return "its compiled kernel has no backward on the CPU"
        if q_BHLD.shape[-1] & (q_BHLD.shape[-1] - 1):
            return f"head dim {q_BHLD.shape[-1]} is no power of two"
        return None

    def forward(self, call: Call, q_BHLD: Tensor, k_BGSD: Tensor, v_BGSD: Tensor) -> tuple[Tensor, Tensor]:
        out, lse = _run(call, q_BHLD, k_BGSD, v_BGSD)
        return out.transpose(1, 2), lse

    def backward(
        self, call: Call, grad_BLHD: Tensor, q: Tensor, k: Tensor, v: Tensor, out_BLHD: Tensor, lse_BHL: Tensor
    ) -> list[Tensor]:
        # its own log-sum-exp has a right gradient: run it again and send the merge's gradient through it
        with torch.enable_grad():
            leaves = [x.detach().requires_grad_() for x in (q, k, v)]
            part, part_lse = _run(call, *leaves)
            grad = grad_BLHD.transpose(1, 2).float()
            weight = torch.exp(part_lse - torch.where(lse_BHL == float("-inf"), 0.0, lse_BHL))[..., None]
            grad_lse = (weight * grad * (part.float() - out_BLHD.transpose(1, 2).float())).sum(-1)
            return list(torch.autograd.grad([part, part_lse], leaves, [(weight * grad).to(q.dtype), grad_lse]))


def _run(call: Call, q: Tensor, k: Tensor, v: Tensor) -> tuple[Tensor, Tensor]:
    mask = _block_mask(call, q.device)
    flex: Any = _compiled()
    out, aux = flex(q, k, v, block_mask=mask, scale=call.scale, enable_gqa=True, return_aux=fa.AuxRequest(lse=True))
    empty = torch.isinf(aux.lse)
    return out.masked_fill(empty[..., None], 0.0), aux.lse.masked_fill(empty, float("-inf"))


def _block_mask(call: Call, device: torch.device) -> Any:
    visible, q_pos, k_pos = call.visible, call.q_pos_BL, call.k_pos_BS
    assert not isinstance(visible, TopKeys)

    def mask_mod(b: Tensor, h: Tensor, i: Tensor, j: Tensor) -> Tensor:
        query, key = q_pos[b, i], k_pos[b, j]
        return (query >= 0) & (key >= 0) & visible.pairs(query.view(1, 1), key.view(1, 1)).view(())

    sizes = q_pos.shape[0], None, q_pos.shape[1], k_pos.shape[1]
    return fa.create_block_mask(mask_mod, *sizes, device=device)


@lru_cache(maxsize=1)
def _compiled() -> Any:
    return torch.compile(fa.flex_attention, dynamic=False)
