"""A rotation: the positions at which something is read, as the model's own cosines and sines."""

# B batch, H heads, L tokens, D head dim, R rotary dims
from __future__ import annotations

import functools
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from .available import TRITON

ApplyRotary = Callable[..., tuple[Tensor, Tensor]]


@dataclass(frozen=True)
class Rotation:
    """Cosines and sines (B or 1, L or 1, R) of the positions at which something is read.

    `apply_rotary` is the model's own `apply_rotary_pos_emb(q, k, cos, sin)`, so interleaved and partial layouts are
    whatever the model does. On a GPU, without gradients, the common layout runs as one kernel instead of six.
    """

    cos: Tensor
    sin: Tensor
    apply_rotary: ApplyRotary

    def __call__(self, x_BHLD: Tensor) -> Tensor:
        """Queries or keys, rotated."""
        if _one_kernel(x_BHLD) and rotates_halves(self.apply_rotary, x_BHLD.shape[-1], self.cos.shape[-1]):
            from .kernels.triton_rotate import rotate

            return rotate(x_BHLD, self.cos, self.sin)
        # the model's function rotates two tensors; one head of the first is the cheapest second
        rotated = self.apply_rotary(x_BHLD, x_BHLD[:, :1], self.cos, self.sin)[0]
        return rotated.to(x_BHLD.dtype)  # under autocast the cosines are fp32


def _one_kernel(x: Tensor) -> bool:
    graph = torch.is_grad_enabled() and x.requires_grad
    return x.is_cuda and not graph and TRITON and not torch.compiler.is_compiling()


@functools.cache
def rotates_halves(apply_rotary: ApplyRotary, dim: int, rotary_dim: int) -> bool:
    """Does the model's function compute x cos + (-x2, x1) sin over its first `rotary_dim` dims? Tried, not guessed."""
    generator = torch.Generator("cpu").manual_seed(0)
    x, cos, sin = (
        torch.randn(s, generator=generator, device="cpu")
        for s in ((1, 2, 3, dim), (1, 3, rotary_dim), (1, 3, rotary_dim))
    )
    try:
        got = apply_rotary(x, x[:, :1], cos, sin)[0]
    except Exception:  # some layouts want other shapes: then it is not the common one
        return False
    low, high = x[..., :rotary_dim].chunk(2, dim=-1)
    expected = x[..., :rotary_dim] * cos[:, None] + torch.cat((-high, low), -1) * sin[:, None]
    return torch.allclose(got, torch.cat((expected, x[..., rotary_dim:]), -1), atol=1e-6)
