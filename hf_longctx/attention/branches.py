"""Attention as a sum of branches: a softmax over the union of several sets of keys.

A `Branch` says which queries meet which keys, and at which positions each is *read*. `attend` runs every branch
through the fastest kernel that can do it and merges the parts by log-sum-exp, forward and backward.
"""

# B batch, H query heads, G key/value heads, L queries, S keys, D head dim, K selected keys of a query
from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from .rotation import Rotation


@dataclass(frozen=True)
class Causal:
    """A query sees every key at or before its own position."""

    def pairs(self, q_pos_BL: Tensor, k_pos_BS: Tensor) -> Tensor:
        return q_pos_BL[:, :, None] >= k_pos_BS[:, None, :]

    def span(self, q_low: int, q_high: int) -> tuple[int, int]:
        """The lowest and the highest key position that queries at q_low..q_high can see."""
        return 0, q_high


@dataclass(frozen=True)
class Window:
    """A query sees the `size` nearest positions up to its own: distances 0 to size - 1."""

    size: int

    def pairs(self, q_pos_BL: Tensor, k_pos_BS: Tensor) -> Tensor:
        distance = q_pos_BL[:, :, None] - k_pos_BS[:, None, :]
        return (distance >= 0) & (distance < self.size)

    def span(self, q_low: int, q_high: int) -> tuple[int, int]:
        return q_low - self.size + 1, q_high


@dataclass(frozen=True)
class Outside:
    """A query sees the positions that a `Window` of the same size leaves out: distances of `size` and more."""

    size: int

    def pairs(self, q_pos_BL: Tensor, k_pos_BS: Tensor) -> Tensor:
        return q_pos_BL[:, :, None] - k_pos_BS[:, None, :] >= self.size

    def span(self, q_low: int, q_high: int) -> tuple[int, int]:
        return 0, q_high - self.size


@dataclass(frozen=True)
class Full:
    """A query sees every key there is."""

    def pairs(self, q_pos_BL: Tensor, k_pos_BS: Tensor) -> Tensor:
        return (q_pos_BL[:, :, None] >= 0) & (k_pos_BS[:, None, :] >= 0)

    def span(self, q_low: int, q_high: int) -> tuple[int, int]:
        return 0, torch.iinfo(torch.long).max


@dataclass(frozen=True, eq=False)
class Selected:
    """A query of a head sees the keys at these slots: `index` is (B, H, L, K), -1 where there is none."""

    index_BHLK: Tensor


Visible = Causal | Window | Outside | Full | Selected


@dataclass(frozen=True)
class Branch:
    """Some keys and values, where queries and keys are read, and which pairs exist.

    Args:
        q_BHLD, k_BGSD, v_BGSD: queries, keys, values; H is a multiple of G.
        q_pos_BL, k_pos_BS: true positions, int64; -1: no such row or slot (padding, an empty slot).
        visible: which (query, key) pairs are in this branch, by true position.
        q_rope, k_rope: the rotations that put queries and keys where they are read. None: they are right already.
        regular: the real rows are consecutive positions in order, both queries and keys, ending together; kernels
            that know windows only by index need it.
        padded: some position is -1. False lets kernels skip the check.
        memo: kernels keep there what follows from positions alone. Shared by branches with the very same positions,
            such as those of the layers of one forward, and by no others.
    """

    q_BHLD: Tensor
    k_BGSD: Tensor
    v_BGSD: Tensor
    q_pos_BL: Tensor
    k_pos_BS: Tensor
    visible: Visible
    q_rope: Rotation | None = None
    k_rope: Rotation | None = None
    regular: bool = False
    padded: bool = True
    memo: dict[Any, Any] | None = None

    def pairs(self) -> Tensor:
        """The visible pairs as a (B, L, S) mask: the readable definition, O(L S) memory."""
        assert not isinstance(self.visible, Selected)
        return pairs(self.visible, self.q_pos_BL, self.k_pos_BS)


def pairs(visible: Causal | Window | Outside | Full, q_pos_BL: Tensor, k_pos_BS: Tensor) -> Tensor:
    """`visible` as a (B, L, S) mask, empty slots and rows left out."""
    real = (q_pos_BL[:, :, None] >= 0) & (k_pos_BS[:, None, :] >= 0)
    return real & visible.pairs(q_pos_BL, k_pos_BS)


def attend(branches: list[Branch], *, scale: float, kernel: str = "auto", strict: bool = True) -> Tensor:
    """Softmax attention over the union of the branches' keys.

    Args:
        branches: disjoint: a (query, key) pair exists in one of them at most. They share their queries' shape.
        scale: multiplies q k, usually 1 / sqrt(D).
        kernel: "auto" (the fastest that can do each branch) or a name from `hf_longctx.attention.kernels.KERNELS`.
        strict: whether a named kernel must do every branch; else those that it has no words for go to another.

    Returns:
        (B, L, H, D) in the queries' dtype. A query without any key, such as padding, gets zeros.

    Gradients flow to every q, k and v: each branch's backward gets the merged output and log-sum-exp, because autograd
    through a kernel's own log-sum-exp is silently zero for most of them.
    """
    from .kernels import Call, choose, decode

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


def merge(out_BLHD: Tensor, lse_BHL: Tensor, part_BLHD: Tensor, part_lse_BHL: Tensor) -> tuple[Tensor, Tensor]:
    """Two parts of one softmax as one. Log-sum-exps are fp32 (fp64 for fp64 inputs); -inf is a row without keys."""
    lse = torch.logaddexp(lse_BHL, part_lse_BHL)
    base = torch.where(lse == float("-inf"), 0.0, lse)  # rows without any key: exp(-inf - 0) = 0, not nan
    old = torch.exp(lse_BHL - base).transpose(1, 2)[..., None]
    new = torch.exp(part_lse_BHL - base).transpose(1, 2)[..., None]
    return out_BLHD * old + part_BLHD * new, lse
