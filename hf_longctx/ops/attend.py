"""Attention as a sum of branches: a softmax over the union of several sets of keys.

A `Branch` says which queries meet which keys, and at which positions each is *read*. `attend` runs every branch
through the fastest kernel that can do it and merges the parts by log-sum-exp, forward and backward.
"""

# B batch, H query heads, G key/value heads, L queries, S keys, D head dim
from __future__ import annotations

from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from .branch import Branch
from .kernels import FUSED, choose
from .kernels.base import Call, Kernel
from .merge import merge_sink, share


class Part(NamedTuple):
    """One branch with the kernel that does it; q and k are rotated, all three are of one dtype."""

    kernel: Kernel
    call: Call
    q_BHLD: Tensor
    k_BGSD: Tensor
    v_BGSD: Tensor


def attend(
    branches: list[Branch],
    *,
    scale: float,
    kernel: str = "auto",
    strict: bool = True,
    sink_H: Tensor | None = None,
) -> Tensor:
    """Softmax attention over the union of the branches' keys.

    Args:
        branches: Disjoint: a (query, key) pair exists in one of them at most. They share their queries' shape.
        scale: Multiplies q k, usually 1 / sqrt(D).
        kernel: "auto" (the fastest that can do each branch) or a name from `hf_longctx.ops.kernels.KERNELS`.
        strict: Whether a named kernel must do every branch; else those that it does not take go to another.
        sink_H: A logit for each head that takes part in the softmax's denominator only (gpt-oss: `s_aux`).

    Returns:
        (B, L, H, D) in the queries' dtype. A query without any key, such as padding, gets zeros.

    Gradients flow to every q, k and v, to the weights of biases and to the sink: each branch's backward gets the merged
    output and log-sum-exp, because autograd through a kernel's own log-sum-exp is silently zero for most of them.
    """
    # CPU flash ends the process at zero keys
    filled = [branch for branch in branches if branch.k_BGSD.shape[2] and branch.q_BHLD.shape[2]]
    if not filled:
        return torch.zeros_like(branches[0].q_BHLD).transpose(1, 2)
    if kernel == "auto" and not (sink_H is not None and sink_H.requires_grad and torch.is_grad_enabled()):
        for fused in FUSED:
            if fused.unsupported_reason(filled) is None:
                out, lse = fused.forward(filled, scale)
                return out if sink_H is None else merge_sink(out, lse, sink_H)[0].to(out.dtype)
    parts = []
    for branch in filled:
        q = branch.q_BHLD if branch.q_rope is None else branch.q_rope(branch.q_BHLD)
        k = branch.k_BGSD if branch.k_rope is None else branch.k_rope(branch.k_BGSD)
        k, v = k.to(q.dtype), branch.v_BGSD.to(q.dtype)  # a cache written under autocast holds fp32 keys
        call = Call(branch.positions, branch.mask, scale, branch.bias)
        parts.append(Part(choose(call, q, k, kernel, strict), call, q, k, v))
    return softmax_of(parts, sink_H)


def softmax_of(parts: list[Part], sink_H: Tensor | None = None) -> Tensor:
    """The softmax over the union of parts, (B, L, H, D), with gradients; see `attend`."""
    tensors: list[Tensor] = []
    places: dict[int, int] = {}

    def place(x: Tensor) -> int:
        if torch.compiler.is_compiling():
            tensors.append(x.view_as(x))  # Dynamo takes no tensor twice
            return len(tensors) - 1
        if id(x) not in places:
            places[id(x)] = len(tensors)
            tensors.append(x)
        return places[id(x)]

    plan = []
    for kernel, call, *qkv in parts:
        learned = [call.bias.weights] if call.bias is not None and call.bias.weights.requires_grad else []
        plan.append((kernel, call, [place(x) for x in (*qkv, *learned)]))
    sink = None if sink_H is None else place(sink_H)
    out: Tensor = _Attend.apply(plan, sink, *tensors)
    return out


class _Attend(torch.autograd.Function):
    """`plan` holds for every part its kernel, its call, and which of the tensors are its q, k, v (and its bias')."""

    @staticmethod
    def forward(ctx: Any, plan: list[tuple[Kernel, Call, list[int]]], sink: int | None, *tensors: Tensor) -> Tensor:
        out = lse = None
        for kernel, call, at in plan:
            q, k, v = (tensors[i] for i in at[:3])
            if out is None or lse is None:
                out, lse = kernel.forward(call, q, k, v)
            else:
                out, lse = kernel.merge_(call, q, k, v, out, lse)
        assert out is not None
        assert lse is not None
        if sink is not None:
            out, lse = merge_sink(out, lse, tensors[sink])
        ctx.plan, ctx.sink = plan, sink
        ctx.save_for_backward(out, lse, *tensors)
        return out.to(tensors[0].dtype)

    @staticmethod
    @once_differentiable  # a second derivative would take the merged log-sum-exp for a constant
    def backward(ctx: Any, grad_BLHD: Tensor) -> tuple[Tensor | None, ...]:
        out, lse, *tensors = ctx.saved_tensors
        uses = [i for _, _, at in ctx.plan for i in at]
        # the gradients of what several branches share are summed in fp32, and rounded once
        grads: list[Tensor | None] = [
            torch.zeros_like(x, dtype=torch.promote_types(x.dtype, torch.float32)) if uses.count(i) > 1 else None
            for i, x in enumerate(tensors)
        ]
        for kernel, call, at in ctx.plan:
            q, k, v = (tensors[i] for i in at[:3])
            found = kernel.backward(call, grad_BLHD, q, k, v, out, lse, into=[grads[i] for i in at])
            for i, grad in zip(at, found, strict=True):
                grads[i] = grad
        if ctx.sink is not None:
            weight_BLH1 = share(tensors[ctx.sink].to(lse.dtype)[:, None].expand_as(lse), lse)
            grads[ctx.sink] = -(weight_BLH1 * out * grad_BLHD).sum((0, 1, 3))
        rounded = [None if grad is None else grad.to(x.dtype) for x, grad in zip(tensors, grads, strict=True)]
        return None, None, *rounded
