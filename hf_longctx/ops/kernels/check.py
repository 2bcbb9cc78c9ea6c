"""Does a kernel compute the same attention as the reference, values and gradients?"""

from __future__ import annotations

import torch

from ..masks import Window
from . import reference
from .base import Call, Kernel

# half precision keeps 8 (bf16) or 11 (fp16) bits; sums of a few hundred terms lose about one more
TOLERANCE = {torch.bfloat16: 2e-2, torch.float16: 4e-3, torch.float32: 1e-5, torch.float64: 1e-9}


def disagreement(kernel: Kernel, device: torch.device, dtype: torch.dtype, dim: int) -> str | None:
    """None if the kernel agrees on a small windowed GQA problem of unequal lengths, else what went wrong."""
    generator = torch.Generator(device).manual_seed(0)

    def random(*shape: int) -> torch.Tensor:
        return torch.randn(*shape, generator=generator, device=device, dtype=torch.float32).to(dtype)

    q, k, v = random(1, 4, 37, dim), random(1, 2, 64, dim), random(1, 2, 64, dim)
    pos = torch.arange(64, device=device)[None]
    call = Call(pos[:, -37:], pos, Window(16), dim**-0.5, regular=True, padded=False)
    grad = random(1, 37, 4, dim)
    try:
        got = list(kernel.forward(call, q, k, v))
        got += kernel.backward(call, grad, q, k, v, *got)
    except Exception as error:  # whatever a third-party kernel raises is a reason not to use it
        return f"its check raised {type(error).__name__}: {error}"
    truth = list(reference.Kernel().forward(call, q, k, v))
    truth += reference.Kernel().backward(call, grad, q, k, v, *truth)
    for name, mine, other in zip(("output", "log-sum-exp", "dq", "dk", "dv"), got, truth, strict=True):
        off = float((mine.double() - other.double()).norm() / other.double().norm())
        if not off <= TOLERANCE[dtype]:
            return f"its {name} is off by {off:.1e} (relative), more than {TOLERANCE[dtype]:.0e}"
    return None
