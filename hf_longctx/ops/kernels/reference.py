"""The readable kernel: one matrix of scores in fp32, any device, any mask. O(L S) memory."""

# B batch, H query heads, G key/value heads, L queries, S keys, D head dim, R = H / G query heads of a group
from __future__ import annotations

import torch
from torch import Tensor

from ..masks import TopKeys, pairs
from .base import Call


class Kernel:
    name = "reference"
    summary = "plain torch in fp32; any device, any mask, O(L S) memory; what the others are tested against"

    def refuses(self, call: Call, q_BHLD: Tensor, k_BGSD: Tensor) -> str | None:
        return "keys are chosen per query" if isinstance(call.visible, TopKeys) else None

    def forward(self, call: Call, q_BHLD: Tensor, k_BGSD: Tensor, v_BGSD: Tensor) -> tuple[Tensor, Tensor]:
        scores_BGRLS = masked_scores(call, q_BHLD, k_BGSD)
        lse_BGRL = scores_BGRLS.logsumexp(-1)
        weights = weights_of(scores_BGRLS, lse_BGRL)
        out = torch.einsum("bgrls,bgsd->blgrd", weights, v_BGSD.to(weights.dtype))
        return out.flatten(2, 3), lse_BGRL.flatten(1, 2)

    def backward(
        self, call: Call, grad_BLHD: Tensor, q: Tensor, k: Tensor, v: Tensor, out_BLHD: Tensor, lse_BHL: Tensor
    ) -> list[Tensor]:
        groups = k.shape[1]
        scores = masked_scores(call, q, k)
        weights = weights_of(scores, lse_BHL.unflatten(1, (groups, -1)))
        dtype = weights.dtype
        grad = grad_BLHD.to(dtype).unflatten(2, (groups, -1))  # b l g r d
        delta = (grad * out_BLHD.to(dtype).unflatten(2, (groups, -1))).sum(-1)  # b l g r
        dv = torch.einsum("bgrls,blgrd->bgsd", weights, grad)
        dweights = torch.einsum("blgrd,bgsd->bgrls", grad, v.to(dtype))
        dscores = weights * (dweights - delta.permute(0, 2, 3, 1)[..., None]) * call.scale
        dq = torch.einsum("bgrls,bgsd->bgrld", dscores, k.to(dtype)).flatten(1, 2)
        dk = torch.einsum("bgrls,bgrld->bgsd", dscores, q.to(dtype).unflatten(1, (groups, -1)))
        return [dq.to(q.dtype), dk.to(k.dtype), dv.to(v.dtype)]


def masked_scores(call: Call, q_BHLD: Tensor, k_BGSD: Tensor) -> Tensor:
    """Scaled scores (B, G, R, L, S) in fp32 (fp64 for fp64), -inf where a pair does not exist."""
    assert not isinstance(call.visible, TopKeys)
    dtype = torch.promote_types(q_BHLD.dtype, torch.float32)
    q = q_BHLD.to(dtype).unflatten(1, (k_BGSD.shape[1], -1))
    scores = torch.einsum("bgrld,bgsd->bgrls", q, k_BGSD.to(dtype)) * call.scale
    mask_BLS = pairs(call.visible, call.q_pos_BL, call.k_pos_BS)
    return scores.masked_fill(~mask_BLS[:, None, None], float("-inf"))


def weights_of(scores: Tensor, lse: Tensor) -> Tensor:
    """exp(scores - lse), zero where a row has no key."""
    return torch.exp(scores - torch.where(lse == float("-inf"), 0.0, lse)[..., None])
