"""The softmax over parts that run through different kernels, merged by log-sum-exp, forward and backward."""

# B batch, H query heads, G key/value heads, L queries, S keys, D head dim
from __future__ import annotations

from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from .kernels.base import Call, Kernel
from .merge import merge, merge_sink, share

Planned = tuple[Kernel, Call, "Tensor | None", list[int]]  # a `Part` whose tensors have numbers


class Done(Kernel):
    """Stands for the kernel of a branch whose output and log-sum-exp are known; without gradients."""

    name = "done"
    unequal_dims = True

    def __init__(self, out_BLHD: Tensor, lse_BHL: Tensor) -> None:
        self.found = out_BLHD, lse_BHL

    def forward(self, call: Call, q_BHLD: Tensor, k_BGSD: Tensor, v_BGSD: Tensor) -> tuple[Tensor, Tensor]:
        """See `Kernel`."""
        return self.found


class Part(NamedTuple):
    """One branch with the kernel that does it; q and k are rotated, all three are of one dtype."""

    kernel: Kernel
    call: Call
    q_BHLD: Tensor
    k_BGSD: Tensor
    v_BGSD: Tensor
    lowered_BL: Tensor | None = None  # see `Branch`

    @property
    def qkv(self) -> tuple[Tensor, Tensor, Tensor]:
        """Queries, keys and values."""
        return self.q_BHLD, self.k_BGSD, self.v_BGSD

    def of(self, q_BHLD: Tensor, k_BGSD: Tensor, v_BGSD: Tensor) -> Part:
        """The same with other tensors."""
        return self._replace(q_BHLD=q_BHLD, k_BGSD=k_BGSD, v_BGSD=v_BGSD)

    def forward(self) -> tuple[Tensor, Tensor]:
        """Its output (B, L, H, D), and its log-sum-exp (B, H, L), lowered where it is."""
        out, lse = self.kernel.forward(self.call, *self.qkv)
        return out, lse if self.lowered_BL is None else lse - self.lowered_BL[:, None]

    def merge_(self, out: Tensor, lse: Tensor, sink_H: Tensor | None) -> tuple[Tensor, Tensor]:
        """Its output and log-sum-exp merged into others; see `Kernel.merge_`."""
        if self.lowered_BL is None:
            return self.kernel.merge_(self.call, *self.qkv, out, lse, sink_H)
        merged = merge(out, lse, *self.forward())
        return merged if sink_H is None else merge_sink(*merged, sink_H)

    def backward(self, grad_BLHD: Tensor, out: Tensor, lse_BHL: Tensor, into: list[Tensor | None]) -> list[Tensor]:
        """See `Kernel.backward`. A score less what it is lowered by and the log-sum-exp is one less their sum."""
        lse = lse_BHL if self.lowered_BL is None else lse_BHL + self.lowered_BL[:, None]
        return self.kernel.backward(self.call, grad_BLHD, *self.qkv, out, lse, into=into)


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
    for part in parts:
        call = part.call
        learned = [call.bias.weights] if call.bias is not None and call.bias.weights.requires_grad else []
        plan.append((part.kernel, call, part.lowered_BL, [place(x) for x in (*part.qkv, *learned)]))
    sink = None if sink_H is None else place(sink_H)
    out: Tensor = _Attend.apply(plan, sink, *tensors)
    return out


class _Attend(torch.autograd.Function):
    """`plan` holds every part as far as it is not q, k, v (and its bias'), and which of the tensors are these."""

    @staticmethod
    def forward(ctx: Any, plan: list[Planned], sink: int | None, *tensors: Tensor) -> Tensor:
        out = lse = None
        left = None if sink is None else tensors[sink]  # merged with the last part, in one pass if its kernel can
        for n, (kernel, call, lowered, at) in enumerate(plan, start=1):
            q, k, v = (tensors[i] for i in at[:3])
            part = Part(kernel, call, q, k, v, lowered)
            if out is None or lse is None:
                out, lse = part.forward()
            else:
                out, lse = part.merge_(out, lse, left if n == len(plan) else None)
        assert out is not None
        assert lse is not None
        if left is not None and len(plan) == 1:
            out, lse = merge_sink(out, lse, left)
        ctx.plan, ctx.sink = plan, sink
        ctx.save_for_backward(out, lse, *tensors)
        return out.to(tensors[0].dtype)

    @staticmethod
    @once_differentiable  # a second derivative would take the merged log-sum-exp for a constant
    def backward(ctx: Any, grad_BLHD: Tensor) -> tuple[Tensor | None, ...]:
        out, lse, *tensors = ctx.saved_tensors
        uses = [i for *_, at in ctx.plan for i in at]
        # the gradients of what several branches share are summed in fp32, and rounded once
        grads: list[Tensor | None] = [
            torch.zeros_like(x, dtype=torch.promote_types(x.dtype, torch.float32)) if uses.count(i) > 1 else None
            for i, x in enumerate(tensors)
        ]
        for kernel, call, lowered, at in ctx.plan:
            q, k, v = (tensors[i] for i in at[:3])
            part = Part(kernel, call, q, k, v, lowered)
            found = part.backward(grad_BLHD, out, lse, [grads[i] for i in at])
            for i, grad in zip(at, found, strict=True):
                grads[i] = grad
        if ctx.sink is not None:
            weight_BLH1 = share(tensors[ctx.sink].to(lse.dtype)[:, None].expand_as(lse), lse)
            grads[ctx.sink] = -(weight_BLH1 * out * grad_BLHD).sum((0, 1, 3))
        rounded = [None if grad is None else grad.to(x.dtype) for x, grad in zip(tensors, grads, strict=True)]
        return None, None, *rounded
