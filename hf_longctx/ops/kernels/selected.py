"""Keys chosen per query and head (`TopKeys`): gathered for some queries at a time, then a small softmax."""

# B batch, H query heads, G key/value heads, L queries, S keys, D head dim, K keys of a query
from __future__ import annotations

from collections.abc import Iterator

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
        outs, sums = [], []
        for index, q in _pieces(call, k_BGSD, q_BHLD):
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
        by_query = grad_BLHD.transpose(1, 2), q, out_BLHD.transpose(1, 2), lse_BHL
        parts = [_gradients(call, k, v, *piece) for piece in _pieces(call, k, *by_query)]
        dk, dv = (sum((part[i] for part in parts[1:]), parts[0][i]) for i in (1, 2))
        return [torch.cat([part[0] for part in parts], 2), dk, dv]


def _pieces(call: Call, k_BGSD: Tensor, *by_query: Tensor) -> Iterator[tuple[Tensor, ...]]:
    """The slots and each (B, H, L, ...) for as many queries at a time as may have their keys gathered at once."""
    assert isinstance(call.mask, TopKeys)
    index, shared = call.mask.index_BHLK, call.mask.shared
    size = max(1, GATHERED // max(shared * index[:, :, 0].numel() * k_BGSD.shape[-1], 1))
    for slots, *of_queries in zip(*(x.split(size, 2) for x in (index, *by_query)), strict=True):
        yield slots.long().repeat_interleave(shared, 1), *of_queries


def _gradients(
    call: Call, k: Tensor, v: Tensor, index: Tensor, grad_BHLD: Tensor, q: Tensor, out_BHLD: Tensor, lse_BHL: Tensor
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
