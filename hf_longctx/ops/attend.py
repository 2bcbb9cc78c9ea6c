"""Attention as a sum of branches: a softmax over the union of several sets of keys.

A `Branch` says which queries meet which keys, and at which positions each is *read*. `attend` runs every branch
through the fastest kernel that can do it and merges the parts by log-sum-exp, forward and backward.
"""

# B batch, H query heads, G key/value heads, L queries, S keys, D head dim
from __future__ import annotations

import torch
from torch import Tensor

from .branch import Branch
from .kernels import FUSED, choose
from .kernels.base import Call
from .merge import merge_sink
from .softmax import Part, softmax_of


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
