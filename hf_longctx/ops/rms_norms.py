"""RMS norms found by what they compute, and through torch's one kernel.

transformers computes an RMSNorm in seven operations; autograd keeps an fp32 copy of the input and what comes of it.
`torch.nn.functional.rms_norm` is one kernel on a GPU, whose backward wants the input and a number for each token.
Source: Zhang and Sennrich, "Root Mean Square Layer Normalization" (2019), section 4.
"""

from __future__ import annotations

import copy
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.functional import rms_norm

from .checked import relative_error

EPS = ("variance_epsilon", "eps", "epsilon")
SCALES = (1e-3, 1.0, 30.0)  # of the inputs that are tried: among the small ones its epsilon shows
WHOLE = (torch.float32, torch.float64)
TOLERANCE = {torch.bfloat16: 2e-2, torch.float16: 4e-3}  # else 1e-5: transformers computes doubles in fp32 too


@dataclass(frozen=True)
class RMSNormForm:
    """What an RMSNorm computes: x / sqrt(mean(x^2) + eps), times its weight or times 1 + its weight, as in Gemma."""

    eps: float
    adds_one: bool

    def fits(self, dtype: torch.dtype) -> bool:
        """Whether the kernel serves it: 1 + weight is wanted in fp32, and the kernel takes it in the input's dtype."""
        return not self.adds_one or dtype in WHOLE

    def fused(self, x: Tensor, weight: Tensor) -> Tensor:
        """The norm of the last dimension of `x`, whose dtype is the weight's, in one kernel."""
        out = rms_norm(x, weight.shape, weight + 1 if self.adds_one else weight, self.eps)
        return out if out.dtype == x.dtype else out.to(x.dtype)  # autocast may widen it


def may_be_rms_norm(module: nn.Module) -> bool:
    """A module with a vector, its weight, and nothing else. torch's own norms are one kernel already."""
    names = [name for name, p in module._parameters.items() if p is not None]
    if names != ["weight"] or next(module.children(), None) is not None or isinstance(module, nn.RMSNorm):
        return False
    weight: Any = module._parameters["weight"]
    return bool(weight.dim() == 1)


def eps_of(module: nn.Module) -> float | None:
    """Its epsilon."""
    found = (getattr(module, name, None) for name in EPS)
    return next((eps for eps in found if isinstance(eps, float)), None)


@torch.no_grad()
def form_of(module: nn.Module) -> RMSNormForm | str:
    """What a norm computes, or why it is no RMSNorm that could be fused, beginning with its name.

    A copy is tried, with other weights: those of a new model are all 1, or all 0.
    """
    name, eps = type(module).__name__, eps_of(module)
    if eps is None:
        return f"{name} has no epsilon by a name that is known ({', '.join(EPS)})"
    weight: Any = module.weight
    probe: Any = copy.deepcopy(module)
    if weight.device.type == "meta":
        probe = probe.to_empty(device="cpu")
    generator = torch.Generator().manual_seed(0)
    like: Tensor = probe.weight
    like.copy_(torch.randn(like.shape, generator=generator, device="cpu"))
    parts = [torch.randn(3, len(like), generator=generator, device="cpu") * scale for scale in SCALES]
    x = torch.stack(parts).to(like.device, like.dtype)
    try:
        right = probe(x)
    except Exception as error:
        return f"{name} cannot be called with hidden states alone ({type(error).__name__}: {error})"
    if isinstance(right, Tensor) and right.shape == x.shape and right.dtype == x.dtype:
        for form in (RMSNormForm(eps, adds_one) for adds_one in (False, True)):
            # size by size, or the largest would hide the others
            pairs = zip(form.fused(x, like), right, strict=True)
            if max(relative_error(*pair) for pair in pairs) <= TOLERANCE.get(x.dtype, 1e-5):
                return form
    return f"{name} computes something else than an RMSNorm"
