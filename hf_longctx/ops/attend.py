"""Attention as a sum of branches: a softmax over the union of several sets of keys.

A `Branch` says which queries meet which keys, and at which positions each is *read*. `attend` runs every branch
through the fastest kernel that can do it and merges the parts by log-sum-exp, forward and backward.
"""

# B batch, H query heads, G key/value heads, L queries, S keys, D head dim
from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from .branch import Branch
from .kernels import choose, decode
from .kernels.base import Call
from .merge import merge


def attend(branches: list[Branch], *, scale: float, kernel: str = "auto", strict: bool = True) -> Tensor:
    """Softmax attention over the union of the branches' keys.

    Args:
        branches: disjoint: a (query, key) pair exists in one of them at most. They share their queries' shape.
        scale: multiplies q k, usually 1 / sqrt(D).
        kernel: "auto" (the fastest that can do each branch) or a name from `hf_longctx.ops.kernels.KERNELS`.
        strict: whether a named kernel must do every branch; else those that it has no words for go to another.

    Returns:
        (B, L, H, D) in the queries' dtype. A query without any key, such as padding, gets zeros.

    Gradients flow to every q, k and v: each branch's backward gets the merged output and log-sum-exp, because autograd
    through a kernel's own log-sum-exp is silently zero for most of them.
    """
    calls, tensors = [], []
    # CPU flash ends the process at zero keys
    filled = [branch for branch in branches if branch.k_BGSD.shape[2] and branch.q_BHLD.shape[2]]
    if filled and kernel == "auto" and decode.refuses(filled) is None:
        return decode.attend(filled, scale)
    for branch in filled:
        q = branch.q_BHLD if branch.q_rope is None else branch.q_rope(branch.q_BHLD)
        k = branch.k_BGSD if branch.k_rope is None else branch.k_rope(branch.k_BGSD)
        k, v = k.to(q.dtype), branch.v_BGSD.to(q.dtype)  # a cache written under autocast holds fp32 keys
        call = Call(
            q_pos_BL=branch.q_pos_BL,
            k_pos_BS=branch.k_pos_BS,
            visible=branch.visible,
            scale=scale,
            regular=branch.regular,
            padded=branch.padded,
            memo=branch.memo,
        )
        calls.append((choose(call, q, k, kernel, strict), call))
        tensors += [q, k, v]
    if not calls:
        return torch.zeros_like(branches[0].q_BHLD).transpose(1, 2)
    if torch.compiler.is_compiling():
        tensors = [t.view_as(t) for t in tensors]  # branches share keys or values; Dynamo takes no tensor twice
    return _Attend.apply(calls, *tensors)


class _Attend(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, calls: list[Any], *tensors: Tensor) -> Tensor:
        out, lse = calls[0][0].forward(calls[0][1], *tensors[:3])
        for i, (kernel, call) in enumerate(calls[1:], start=1):
            q, k, v = tensors[3 * i : 3 * i + 3]
            if hasattr(kernel, "add_") and lse.is_contiguous():
                kernel.add_(call, q, k, v, out, lse)
            else:
                out, lse = merge(out, lse, *kernel.forward(call, q, k, v))
        ctx.calls = calls
        ctx.save_for_backward(out, lse, *tensors)
        return out.to(tensors[0].dtype)

    @staticmethod
    @once_differentiable  # a second derivative would take the merged log-sum-exp for a constant
    def backward(ctx: Any, grad_BLHD: Tensor) -> tuple[Tensor | None, ...]:
        out, lse, *tensors = ctx.saved_tensors
        grads: list[Tensor | None] = [None]
        for i, (kernel, call) in enumerate(ctx.calls):
            q, k, v = tensors[3 * i : 3 * i + 3]
            grads += kernel.backward(call, grad_BLHD, q, k, v, out, lse)
        return tuple(grads)
