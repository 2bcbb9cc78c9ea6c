"""What every kernel says of itself, and its one signature."""

# B batch, H query heads, G key/value heads, L queries, S keys, D head dim
from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from ..available import TRITON
from ..bias import Bias
from ..masks import Mask, Packed
from ..merge import merge, merge_sink
from ..positions import Positions

HALF = (torch.float16, torch.bfloat16)
NO_TRITON = "Triton is not installed, or torch.compile is tracing"


@dataclass(frozen=True, eq=False)
class Call:
    """What a kernel must know besides q, k and v; the fields are those of `Branch` and of `attend`."""

    positions: Positions
    mask: Mask
    scale: float
    bias: Bias | None = None
    softcap: float | None = None


def inside_of(mask: Mask) -> Mask:
    """The mask within a document; without documents, the mask itself."""
    return mask.inside if isinstance(mask, Packed) else mask


def takes(classes: tuple[type, ...], value: object) -> bool:
    """Is a mask, or a bias, of one of these very classes, or is the base of all among them?"""
    return type(value) in classes or any(isinstance(value, base) and base in classes for base in (Mask, Bias))


class Kernel:
    """A kernel computes one branch: its part of the output, normalised on its own, and its log-sum-exp.

    The log-sum-exp is fp32 (fp64 for fp64 inputs), -inf where a row has no key; the output is 0 there.

    Attributes:
        name: What `attend` takes.
        priority: Its place among the kernels, the lower the earlier.
        by_name: `auto` never takes it.
        summary: A line for the table of kernels.
        masks: The classes of masks that it takes, without their subclasses; `Mask` itself stands for all of them.
        packed: The classes of masks that it takes inside of `Packed`, where positions come with their segments.
        biases: The classes of biases that it takes; `Bias` for all of them.
        softcaps: It can cap scores.
        pads: It takes padded batches. The rows of packed documents have none.
        unequal_dims: Values may have another head dim than keys; for others `attend` makes them equal.
        device: The only type of device that it runs on, if there is one.
        dtypes: Those that it takes; None: all.
        head_dims: The largest head dim, and what every one must be a multiple of.
        triton: It is written in Triton.
        by_row: It has `forward_rows` and `gradients_rows`.
    """

    name: ClassVar[str]
    priority: ClassVar[int]
    by_name: ClassVar[bool] = False
    summary: ClassVar[str]
    masks: ClassVar[tuple[type[Mask], ...]]
    packed: ClassVar[tuple[type[Mask], ...]] = ()
    biases: ClassVar[tuple[type[Bias], ...]] = ()
    softcaps: ClassVar[bool] = False
    pads: ClassVar[bool] = True
    unequal_dims: ClassVar[bool] = False
    device: ClassVar[str | None] = None
    dtypes: ClassVar[tuple[torch.dtype, ...] | None] = None
    head_dims: ClassVar[tuple[int, int] | None] = None
    triton: ClassVar[bool] = False
    by_row: ClassVar[bool] = False

    def unsupported_reason(self, call: Call, q_BHLD: Tensor, k_BGSD: Tensor) -> str | None:
        """Why this kernel cannot do the call; None if it can."""
        if self.device is not None and q_BHLD.device.type != self.device:
            return f"tensors are not on a {self.device.upper()} device"
        if not takes(self.masks, call.mask):
            reason = self._packed_reason(call, q_BHLD)
            if reason is not None:
                return reason
        if call.bias is not None and not takes(self.biases, call.bias):
            return f"it adds no {type(call.bias).__name__} to scores"
        if call.softcap is not None and not self.softcaps:
            return "it has no soft-capping"
        if self.dtypes is not None and q_BHLD.dtype not in self.dtypes:
            names = " or ".join(str(dtype).removeprefix("torch.") for dtype in self.dtypes)
            return f"dtype {q_BHLD.dtype} is not {names}"
        if self.head_dims is not None:
            most, step = self.head_dims
            if q_BHLD.shape[-1] > most or q_BHLD.shape[-1] % step:
                return f"head dim {q_BHLD.shape[-1]} is over {most}" + f" or no multiple of {step}" * (step > 1)
        if self.triton and (not TRITON or torch.compiler.is_compiling()):
            return NO_TRITON
        if call.positions.padded and not self.pads and not isinstance(call.mask, Packed):
            return "the batch is padded"
        return self.limits(call, q_BHLD, k_BGSD)

    def _packed_reason(self, call: Call, q_BHLD: Tensor) -> str | None:
        """Why a mask that is none of `masks` is none of `packed` documents either."""
        mask = call.mask
        if not isinstance(mask, Packed) or not self.packed:
            return f"it has no {type(mask).__name__} mask"
        if not takes(self.packed, mask.inside):
            return f"it has no {type(mask.inside).__name__} mask inside of packed documents"
        if call.positions.segments is None:
            return "it takes packed documents by their segments only, and Positions has none (see segments_of)"
        if q_BHLD.shape[0] != 1:
            return f"segments are those of one row, and the batch has {q_BHLD.shape[0]}"
        return None

    def limits(self, call: Call, q_BHLD: Tensor, k_BGSD: Tensor) -> str | None:
        """What only this kernel knows of what it cannot do."""
        return None

    def slower_reason(self, call: Call, q_BHLD: Tensor, k_BGSD: Tensor) -> str | None:
        """Why `auto` should look further, although this kernel can do the call."""
        return None

    def forward(self, call: Call, q_BHLD: Tensor, k_BGSD: Tensor, v_BGSD: Tensor) -> tuple[Tensor, Tensor]:
        """Compute out (B, L, H, D) and lse (B, H, L) of one branch."""
        raise NotImplementedError

    def forward_rows(self, call: Call, q_LHD: Tensor, k_SGD: Tensor, v_SGD: Tensor) -> tuple[Tensor, Tensor]:
        """`forward` of packed documents, row by row: out (L, H, D) and lse (H, L). Spares the host many views."""
        raise NotImplementedError

    def gradients_rows(
        self, call: Call, grad_LHD: Tensor, q: Tensor, k: Tensor, v: Tensor, out_LHD: Tensor, lse_HL: Tensor
    ) -> Sequence[Tensor]:
        """`gradients` of the same: dq (L, H, D), dk and dv (S, G, D)."""
        raise NotImplementedError

    def merge_(
        self,
        call: Call,
        q: Tensor,
        k: Tensor,
        v: Tensor,
        out_BLHD: Tensor,
        lse_BHL: Tensor,
        sink_H: Tensor | None = None,
    ) -> tuple[Tensor, Tensor]:
        """Merge the branch into an output and a log-sum-exp, which may be overwritten, and return them.

        The last branch of a softmax gets its sinks, and merges them too.
        """
        merged = merge(out_BLHD, lse_BHL, *self.forward(call, q, k, v))
        return merged if sink_H is None else merge_sink(*merged, sink_H)

    def gradients(
        self, call: Call, grad_BLHD: Tensor, q: Tensor, k: Tensor, v: Tensor, out_BLHD: Tensor, lse_BHL: Tensor
    ) -> Sequence[Tensor]:
        """dq, dk and dv, then that of a bias' weights where they require one, in the precision they were summed in.

        The output and the log-sum-exp are those of the *whole* softmax.
        """
        raise NotImplementedError

    def backward(
        self,
        call: Call,
        grad_BLHD: Tensor,
        q: Tensor,
        k: Tensor,
        v: Tensor,
        out_BLHD: Tensor,
        lse_BHL: Tensor,
        into: Sequence[Tensor | None] = (None,) * 4,
    ) -> list[Tensor]:
        """The `gradients`, rounded to the dtype of what they are of.

        Those with a buffer `into`, usually fp32, are added to it, unrounded; it takes their place.
        """
        buffers = [buffer for buffer in into[:3] if buffer is not None]
        if call.bias is None and len(buffers) == 3:
            self.add_gradients(call, (grad_BLHD, q, k, v, out_BLHD, lse_BHL), buffers)
            return buffers
        of = [q, k, v] if call.bias is None else [q, k, v, call.bias.weights]
        grads = self.gradients(call, grad_BLHD, q, k, v, out_BLHD, lse_BHL)
        return [
            grad.to(x.dtype) if buffer is None else buffer.add_(grad)
            for x, grad, buffer in zip(of, grads, into, strict=False)  # weights may need no gradient
        ]

    def add_gradients(self, call: Call, given: Sequence[Tensor], into: Sequence[Tensor]) -> None:
        """Add the `gradients` of q, k and v, of a call without a bias, to buffers; `given` are its other arguments."""
        for buffer, found in zip(into, self.gradients(call, *given), strict=True):
            buffer += found
