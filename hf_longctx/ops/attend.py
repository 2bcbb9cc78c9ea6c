"""Attention as a sum of branches: a softmax over the union of several sets of keys.

A `Branch` says which queries meet which keys, and at which positions each is *read*. `attend` runs every branch
through the fastest kernel that can do it and merges the parts by log-sum-exp, forward and backward.
"""

# B batch, H query heads, G key/value heads, L queries, S keys, D head dim
from __future__ import annotations

from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

from .available import DERIVES_WHILE_TRACING
from .branch import Branch
from .kernels import FUSED, choose
from .kernels.base import Call
from .softmax import Done, Part, softmax_of
from .widths import widened


def attend(
    branches: list[Branch],
    *,
    scale: float,
    kernel: str = "auto",
    strict: bool = True,
    sink_H: Tensor | None = None,
    softcap: float | None = None,
) -> Tensor:
    """Softmax attention over the union of the branches' keys.

    Args:
        branches: Disjoint: a (query, key) pair exists in one of them at most. They share the shape of their queries and
            the head dim of their values, which may be another than that of the keys.
        scale: Multiplies q k, usually 1 / sqrt(D).
        kernel: "auto" (the fastest that can do each branch) or a name from `hf_longctx.ops.kernels.KERNELS`.
        strict: Whether a named kernel must do every branch; else those that it does not take go to another.
        sink_H: A logit for each head that takes part in the softmax's denominator only (gpt-oss: `s_aux`).
        softcap: Scaled scores s become softcap * tanh(s / softcap), before a bias and the mask (Gemma 2).

    Returns:
        (B, L, H, D) in the queries' dtype, D that of the values. A query without any key, such as padding, gets zeros.

    Gradients flow to every q, k and v, to the weights of biases and to the sink: each branch's backward gets the merged
    output and log-sum-exp, because autograd through a kernel's own log-sum-exp is silently zero for most of them.
    """
    if torch.compiler.is_compiling() and torch.is_grad_enabled() and not DERIVES_WHILE_TRACING:
        settings = {"scale": scale, "kernel": kernel, "strict": strict, "sink_H": sink_H, "softcap": softcap}
        return _outside_graphs(branches, settings)
    if softcap is not None and not softcap > 0:
        raise ValueError(f"softcap={softcap!r}: expected a number above 0. Leave it None for scores without a cap.")
    # CPU flash ends the process at zero keys
    filled = [branch for branch in branches if branch.k_BGSD.shape[2] and branch.q_BHLD.shape[2]]
    if not filled:
        B, H, L, _ = branches[0].q_BHLD.shape
        return branches[0].q_BHLD.new_zeros(B, L, H, branches[0].v_BGSD.shape[-1])
    lowered = any(branch.lowered_BL is not None for branch in filled)
    if (
        kernel == "auto"
        and not lowered
        and not (sink_H is not None and sink_H.requires_grad and torch.is_grad_enabled())
    ):
        for fused in FUSED:
            if fused.unsupported_reason(filled, softcap) is None:
                return fused.forward(filled, scale, softcap, sink_H)[0]
    parts = [_part(branch, scale, kernel, strict, softcap) for branch in filled]
    width = max(parts[-1].k_BGSD.shape[-1], parts[-1].v_BGSD.shape[-1])
    dim = parts[0].v_BGSD.shape[-1]
    if all(part.kernel.unequal_dims or part.k_BGSD.shape[-1] == dim for part in parts):
        return softmax_of(parts, sink_H)
    made: dict[int, Tensor] = {}  # branches that share a tensor share the wider one, and with it an fp32 gradient

    def wide(x: Tensor) -> Tensor:
        if torch.compiler.is_compiling():
            return widened(x, width)
        if id(x) not in made:
            made[id(x)] = widened(x, width)
        return made[id(x)]

    parts = [part.of(*map(wide, part.qkv)) for part in parts]
    return softmax_of(parts, sink_H)[..., :dim]


def attended(branch: Branch, *, scale: float, kernel: str, strict: bool, softcap: float | None = None) -> Branch:
    """The branch with its output and log-sum-exp: who asks for `log_sum_exp` first has it computed once.

    As it is where gradients may flow, which are those of the whole softmax, and where it has no keys. The arguments are
    those of `attend`, which it must be given to with the same ones.
    """
    empty = not branch.k_BGSD.shape[2] or not branch.q_BHLD.shape[2]
    unequal = branch.k_BGSD.shape[-1] != branch.v_BGSD.shape[-1]
    if torch.is_grad_enabled() or torch.compiler.is_compiling() or empty or unequal or branch.lowered_BL is not None:
        return branch
    return replace(branch, done=_part(branch, scale, kernel, strict, softcap).forward())


@torch.no_grad()
def log_sum_exp(branch: Branch, *, scale: float, kernel: str, strict: bool, softcap: float | None = None) -> Tensor:
    """(B, H, L): the log of the sum of exponentials of each query's scores in one branch; -inf where there are none.

    The arguments are those of `attend`.
    """
    if branch.done is not None:
        return branch.done[1]
    if not branch.k_BGSD.shape[2] or not branch.q_BHLD.shape[2]:
        return branch.q_BHLD.new_full(branch.q_BHLD.shape[:3], float("-inf"))
    part = _part(branch, scale, kernel, strict, softcap)
    width = max(x.shape[-1] for x in part.qkv)
    part = part if part.kernel.unequal_dims else part.of(*(widened(x, width) for x in part.qkv))
    return part.forward()[1]


def _part(branch: Branch, scale: float, kernel: str, strict: bool, softcap: float | None) -> Part:
    """A branch as its kernel takes it: rotated, in one dtype."""
    if branch.done is not None:
        call = Call(branch.positions, branch.mask, scale, branch.bias, softcap)
        return Part(Done(*branch.done), call, branch.q_BHLD, branch.k_BGSD, branch.v_BGSD)
    q = branch.q_BHLD if branch.q_rope is None else branch.q_rope(branch.q_BHLD)
    k = branch.k_BGSD if branch.k_rope is None else branch.k_rope(branch.k_BGSD)
    k, v = k.to(q.dtype), branch.v_BGSD.to(q.dtype)  # a cache written under autocast holds fp32 keys
    call = Call(branch.positions, branch.mask, scale, branch.bias, softcap)
    width = max(k.shape[-1], v.shape[-1])
    chosen = choose(call, widened(q, width), widened(k, width), kernel, strict)
    return Part(chosen, call, q, k, v, branch.lowered_BL)


@torch.compiler.disable
def _outside_graphs(branches: list[Branch], settings: dict[str, Any]) -> Tensor:
    """`attend` as it is; what is around it is compiled."""
    return attend(branches, **settings)
