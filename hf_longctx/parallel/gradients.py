"""Gradients of a rank's part of attention, with and without an operator of torch around it."""

# H query heads, G key/value heads, L rows of a rank, D head dim
from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from .blocks import RankResults, RankTensors
from .exchange import Exchange

# as torch runs what is inside of an operator: no call in there asks autograd again, which costs the host some time
BelowAutograd = torch._C._AutoDispatchBelowAutograd


def derive(exchange: Exchange, given: RankTensors, found: RankResults) -> tuple[Tensor, Tensor, Tensor]:
    """Gradients: dq (1, H, L, D), dk and dv (1, G, L, D) in the dtypes of what was given.

    Those of keys and values may be halves of one buffer, which autograd allows and operators do not.
    """
    dq, dk, dv = map(_rounded, exchange.backward(given, found), (given.q_BHLD, given.k_BGLD, given.v_BGLD))
    return dq, dk, dv


def derive_apart(exchange: Exchange, given: RankTensors, found: RankResults) -> tuple[Tensor, Tensor, Tensor]:
    """The same, each in memory of its own."""
    dq, dk, dv = (_by_row(x, x.dtype) if _is_part(x) else x for x in derive(exchange, given, found))
    return dq, dk, dv


def _rounded(grad_BHLD: Tensor, x_BHLD: Tensor) -> Tensor:
    """A gradient in the dtype of its tensor."""
    return grad_BHLD if grad_BHLD.dtype == x_BHLD.dtype else _by_row(grad_BHLD, x_BHLD.dtype)


def _by_row(grad_BHLD: Tensor, dtype: torch.dtype) -> Tensor:
    """A copy in a dtype, in memory row by row, as projections want it."""
    rows_BLHD = grad_BHLD.transpose(1, 2)
    return rows_BLHD.to(dtype, copy=True, memory_format=torch.contiguous_format).transpose(1, 2)


def _is_part(x: Tensor) -> bool:
    """Is a tensor in the memory of a larger one?"""
    return x.untyped_storage().nbytes() > x.numel() * x.element_size()


def remember(
    ctx: Any, given: RankTensors, exchange: Exchange, output: tuple[Tensor, Tensor], kept: Sequence[Tensor] = ()
) -> None:
    """Save for `gradients` what a forward was given and what it found."""
    ctx.scale, ctx.exchange = given.scale, exchange  # alive as long as the graph
    ctx.mark_non_differentiable(output[1])
    ctx.set_materialize_grads(False)  # no zeros for the log-sum-exp
    ctx.save_for_backward(given.q_BHLD, given.k_BGLD, given.v_BGLD, *output, *kept)


def gradients(ctx: Any, grad: Tensor | None, _: Tensor | None) -> tuple[Tensor | None, ...]:
    """The backward pass of autograd: for q, k, v, the scale and the exchange."""
    if grad is None:
        return (None,) * 5
    q, k, v, out, lse, *kept = ctx.saved_tensors
    if type(grad) is Tensor and not torch.compiler.is_compiling():
        found = RankResults(grad.contiguous(), out, lse, tuple(kept))
        with BelowAutograd():
            return *derive(ctx.exchange, RankTensors(q, k, v, ctx.scale), found), None, None
    backward = torch.ops.hf_longctx.ranks_flash_attn_backward
    return *backward(grad, q, k, v, out, lse, ctx.scale, ctx.exchange.number), None, None
