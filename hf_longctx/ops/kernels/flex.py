"""FlexAttention: any mask by true position, compiled; for irregular rows of one shape on a GPU, asked for by name."""

# B batch, H query heads, G key/value heads, L queries, S keys, D head dim
from __future__ import annotations

from functools import lru_cache
from typing import Any

import torch
from torch import Tensor
from torch.nn.attention import flex_attention as fa

from ..masks import Mask
from ..softcap import soft_capped
from .base import Call, Kernel


class Flex(Kernel):
    """See the module."""

    name = "flex"
    priority = 90
    by_name = True  # it compiles for every shape
    summary = "compiled FlexAttention: any mask, any positions; compiles for every new shape, so by name only"
    masks = (Mask,)
    softcaps = True

    def limits(self, call: Call, q_BHLD: Tensor, k_BGSD: Tensor) -> str | None:
        """See `Kernel`."""
        if not q_BHLD.is_cuda:
            return "its compiled kernel has no backward on the CPU"
        if not call.mask.by_position:
            return f"the keys of {type(call.mask).__name__} are chosen by slot, not by position"
        if q_BHLD.shape[-1] & (q_BHLD.shape[-1] - 1):
            return f"head dim {q_BHLD.shape[-1]} is no power of two"
        return None

    def forward(self, call: Call, q_BHLD: Tensor, k_BGSD: Tensor, v_BGSD: Tensor) -> tuple[Tensor, Tensor]:
        """See `Kernel`."""
        out, lse = _run(call, q_BHLD, k_BGSD, v_BGSD)
        return out.transpose(1, 2), lse

    def gradients(
        self, call: Call, grad_BLHD: Tensor, q: Tensor, k: Tensor, v: Tensor, out_BLHD: Tensor, lse_BHL: Tensor
    ) -> list[Tensor]:
        """See `Kernel`."""
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
    settings = {"block_mask": mask, "scale": call.scale, "enable_gqa": True, "return_aux": fa.AuxRequest(lse=True)}
    out, aux = flex(q, k, v, _score_mod(call.softcap), **settings)
    empty = torch.isinf(aux.lse)
    return out.masked_fill(empty[..., None], 0.0), aux.lse.masked_fill(empty, float("-inf"))


def _score_mod(softcap: float | None) -> Any:
    if softcap is None:
        return None

    def score_mod(score: Tensor, b: Tensor, h: Tensor, i: Tensor, j: Tensor) -> Tensor:
        return soft_capped(score, softcap)

    return score_mod


def _block_mask(call: Call, device: torch.device) -> Any:
    seen, q_pos, k_pos = call.mask.pairs, call.positions.q_pos_BL, call.positions.k_pos_BS

    def mask_mod(b: Tensor, h: Tensor, i: Tensor, j: Tensor) -> Tensor:
        query, key = q_pos[b, i], k_pos[b, j]
        # not `masks.pairs`: inductor takes no view as the output of a mask
        return (query >= 0) & (key >= 0) & seen(query.view(1, 1), key.view(1, 1)).view(())

    sizes = q_pos.shape[0], None, q_pos.shape[1], k_pos.shape[1]
    return fa.create_block_mask(mask_mod, *sizes, device=device)


@lru_cache(maxsize=1)
def _compiled() -> Any:
    return torch.compile(fa.flex_attention, dynamic=False)
