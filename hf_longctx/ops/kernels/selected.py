"""Keys chosen per query and head (`TopKeys`): gathered for some queries at a time, then a small softmax."""

# B batch, H query heads, G key/value heads, L queries, S keys, D head dim, K keys of a query
from __future__ import annotations

import torch
from torch import Tensor

from ..masks import TopKeys
from ..softcap import cap_slope, soft_capped
from .base import Call, Kernel
from .reference import weights_of

GATHERED = 2**26  # numbers of keys that are gathered at once


class Selected(Kernel):
    """See the module."""

    name = "selected"
    priority = 10
    summary = "a few keys chosen for every query and head; plain torch, any device"
    masks = (TopKeys,)
    softcaps = True
    unequal_dims = True

    def forward(self, call: Call, q_BHLD: Tensor, k_BGSD: Tensor, v_BGSD: Tensor) -> tuple[Tensor, Tensor]:
        """See `Kernel`."""
        index_BHLK, outs, sums = _index(call), [], []
        for q, index in zip(*_pieces(index_BHLK, k_BGSD, q_BHLD, index_BHLK), strict=True):
            scores = _masked(index, _scores(call, q, _take(k_BGSD, index, q.shape[1])))
            lse = scores.logsumexp(-1)
            values = _take(v_BGSD, index, q.shape[1]).to(scores.dtype)
            outs.append(torch.einsum("bhlk,bhlkd->blhd", weights_of(scores, lse), values))
            sums.append(lse)
        return torch.cat(outs, 1), torch.cat(sums, 2)

    def gradients(
        self, call: Call, grad_BLHD: Tensor, q: Tensor, k: Tensor, v: Tensor, out_BLHD: Tensor, lse_BHL: Tensor
    ) -> list[Tensor]:
        """See `Kernel`."""
        index_BHLK = _index(call)
        by_query = grad_BLHD.transpose(1, 2), q, out_BLHD.transpose(1, 2), lse_BHL, index_BHLK
        parts = [_gradients(call, k, v, *piece) for piece in zip(*_pieces(index_BHLK, k, *by_query), strict=True)]
        dk, dv = (sum((part[i] for part in parts[1:]), parts[0][i]) for i in (1, 2))
        return [torch.cat([part[0] for part in parts], 2), dk, dv]


def _pieces(index_BHLK: Tensor, k_BGSD: Tensor, *by_query: Tensor) -> list[tuple[Tensor, ...]]:
    """Each (B, H, L, ...) for as many queries at a time as may have their keys gathered at once."""
    B, H, _, K = index_BHLK.shape
    size = max(1, GATHERED // max(B * H * K * k_BGSD.shape[-1], 1))
    return [x.split(size, 2) for x in by_query]


def _gradients(
    call: Call, k: Tensor, v: Tensor, grad_BHLD: Tensor, q: Tensor, out_BHLD: Tensor, lse_BHL: Tensor, index: Tensor
) -> tuple[Tensor, Tensor, Tensor]:
    """Of some queries, and what they add to the gradients of all keys and values."""
    heads = q.shape[1]
    keys, values = _take(k, index, heads), _take(v, index, heads)
    scores = _scores(call, q, keys)
    weights = weights_of(_masked(index, scores), lse_BHL)
    grad = grad_BHLD.to(weights.dtype)
    delta = (grad * out_BHLD.to(weights.dtype)).sum(-1)
    dweights = torch.einsum("bhld,bhlkd->bhlk", grad, values.to(weights.dtype))
    dscores = weights * (dweights - delta[..., None]) * (cap_slope(scores, call.softcap) * call.scale)
    dq = torch.einsum("bhlk,bhlkd->bhld", dscores, keys.to(weights.dtype))
    dk = _give(dscores[..., None] * q.to(weights.dtype)[..., None, :], index, k)
    dv = _give(weights[..., None] * grad[..., None, :], index, v)
    return dq, dk, dv


def _index(call: Call) -> Tensor:
    assert isinstance(call.mask, TopKeys)
    return call.mask.index_BHLK


def _take(x_BGSD: Tensor, index_BHLK: Tensor, heads: int) -> Tensor:
    """The chosen rows, (B, H, L, K, D)."""
    B, G, _, D = x_BGSD.shape
    flat = index_BHLK.clamp(min=0).reshape(B, G, -1, 1).expand(-1, -1, -1, D)
    return x_BGSD.gather(2, flat).view(*index_BHLK.shape, D)


def _give(grad_BHLKD: Tensor, index_BHLK: Tensor, like_BGSD: Tensor) -> Tensor:
    """The gradient of `_take`."""
    B, G, _, D = like_BGSD.shape
    flat = index_BHLK.clamp(min=0).reshape(B, G, -1, 1).expand(-1, -1, -1, D)
    rows = (grad_BHLKD * (index_BHLK >= 0)[..., None]).reshape(B, G, -1, D)
    return torch.zeros_like(like_BGSD, dtype=rows.dtype).scatter_add_(2, flat, rows)


def _scores(call: Call, q_BHLD: Tensor, keys_BHLKD: Tensor) -> Tensor:
    dtype = torch.promote_types(q_BHLD.dtype, torch.float32)
    scores = torch.einsum("bhld,bhlkd->bhlk", q_BHLD.to(dtype), keys_BHLKD.to(dtype)) * call.scale
    return soft_capped(scores, call.softcap)


def _masked(index_BHLK: Tensor, scores_BHLK: Tensor) -> Tensor:
    return scores_BHLK.masked_fill(index_BHLK < 0, float("-inf"))
