"""A rotation: the positions at which something is read, as the model's own cosines and sines."""

# B batch, H heads, L tokens, D head dim, R rotary dims
from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from .available import TRITON
from .layout import RotaryLayout, rotates_halves


@dataclass(frozen=True, eq=False)  # torch.compile asks for its hash before its fields are there
class Rotation:
    """Cosines and sines (B or 1, L or 1, R) of the positions at which something is read, applied as the model does.

    On a GPU, without gradients, the common layout runs as one kernel instead of six.
    """

    cos: Tensor
    sin: Tensor
    layout: RotaryLayout

    def __call__(self, x_BHLD: Tensor) -> Tensor:
        """Queries or keys, rotated."""
        if self.by_kernel(x_BHLD):
            from .kernels.triton_rotate import rotate

            return rotate(x_BHLD, self.cos, self.sin)
        return self.layout(x_BHLD, self.cos, self.sin).to(x_BHLD.dtype)  # under autocast the cosines are fp32

    def by_kernel(self, x_BHLD: Tensor) -> bool:
        """Can a kernel do it to these, on its way to something else perhaps?"""
        return _one_kernel(x_BHLD) and rotates_halves(self.layout, x_BHLD.shape[-1], self.cos.shape[-1])


def _one_kernel(x: Tensor) -> bool:
    graph = torch.is_grad_enabled() and x.requires_grad
    return x.is_cuda and not graph and TRITON and not torch.compiler.is_compiling()
