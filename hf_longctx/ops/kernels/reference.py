"""The readable kernel: one matrix of scores in fp32, any device, any mask, any bias. O(L S) memory."""

# B batch, H query heads, G key/value heads, L queries, S keys, D head dim, R = H / G query heads of a group
from __future__ import annotations

import torch
from torch import Tensor

from ..bias import Bias
from ..masks import Mask, pairs
from ..softcap import cap_slope, soft_capped
from .base import Call, Kernel


class Reference(Kernel):
    """See the module."""

    name = "reference"
    priority = 80
    summary = "plain torch in fp32; any device, any mask, O(L S) memory; what the others are tested against"
    masks = (Mask,)
    biases = (Bias,)
    softcaps = True
    unequal_dims = True

    def forward(self, call: Call, q_BHLD: Tensor, k_BGSD: Tensor, v_BGSD: Tensor) -> tuple[Tensor, Tensor]:
        """See `Kernel`."""
        scores_BGRLS = _masked(call, _scores(call, q_BHLD, k_BGSD))
        lse_BGRL = scores_BGRLS.logsumexp(-1)
        weights = weights_of(scores_BGRLS, lse_BGRL)
        out = torch.einsum("bgrls,bgsd->blgrd", weights, v_BGSD.to(weights.dtype))
        return out.flatten(2, 3), lse_BGRL.flatten(1, 2)

    def gradients(
        self, call: Call, grad_BLHD: Tensor, q: Tensor, k: Tensor, v: Tensor, out_BLHD: Tensor, lse_BHL: Tensor
    ) -> list[Tensor]:
        """See `Kernel`."""
        groups = k.shape[1]
        scores = _scores(call, q, k)
        slope = cap_slope(scores, call.softcap)
        weights = weights_of(_masked(call, scores), lse_BHL.unflatten(1, (groups, -1)))
        del scores  # as large as all others here
        dtype = weights.dtype
        grad = grad_BLHD.to(dtype).unflatten(2, (groups, -1))  # b l g r d
        delta = (grad * out_BLHD.to(dtype).unflatten(2, (groups, -1))).sum(-1)  # b l g r
        dv = torch.einsum("bgrls,blgrd->bgsd", weights, grad)
        dweights = torch.einsum("blgrd,bgsd->bgrls", grad, v.to(dtype))
        dbiased = weights * (dweights - delta.permute(0, 2, 3, 1)[..., None])
        dscores = dbiased * (slope * call.scale)
        dq = torch.einsum("bgrls,bgsd->bgrld", dscores, k.to(dtype)).flatten(1, 2)
        dk = torch.einsum("bgrls,bgrld->bgsd", dscores, q.to(dtype).unflatten(1, (groups, -1)))
        if call.bias is None or not call.bias.weights.requires_grad:
            return [dq, dk, dv]
        return [dq, dk, dv, call.bias.gradient(_distances(call, _pairs(call)), dbiased.flatten(1, 2))]


def _scores(call: Call, q_BHLD: Tensor, k_BGSD: Tensor) -> Tensor:
    """Scaled and capped scores (B, G, R, L, S) in fp32 (fp64 for fp64)."""
    dtype = torch.promote_types(q_BHLD.dtype, torch.float32)
    q = q_BHLD.to(dtype).unflatten(1, (k_BGSD.shape[1], -1))
    return soft_capped(torch.einsum("bgrld,bgsd->bgrls", q, k_BGSD.to(dtype)) * call.scale, call.softcap)


def _masked(call: Call, scores_BGRLS: Tensor) -> Tensor:
    """With the bias; -inf where a pair does not exist."""
    scores, seen, groups = scores_BGRLS, _pairs(call), scores_BGRLS.shape[1]
    if call.bias is not None:
        scores = scores + call.bias(_distances(call, seen)).to(scores.dtype).unflatten(1, (groups, -1))
    hidden = ~seen.expand(-1, groups * scores.shape[2], -1, -1).unflatten(1, (groups, -1))
    return scores.masked_fill(hidden, float("-inf"))


def _pairs(call: Call) -> Tensor:
    return pairs(call.mask, call.positions.q_pos_BL, call.positions.k_pos_BS)


def _distances(call: Call, pairs_BHLS: Tensor) -> Tensor:
    """Query minus key (B, L, S); 0 where no head has the pair."""
    distance = call.positions.q_pos_BL[:, :, None] - call.positions.k_pos_BS[:, None]
    return distance.masked_fill(~pairs_BHLS.any(1), 0)


def weights_of(scores: Tensor, lse: Tensor) -> Tensor:
    """exp(scores - lse), zero where a row has no key."""
    return torch.exp(scores - torch.where(lse == float("-inf"), 0.0, lse)[..., None])
