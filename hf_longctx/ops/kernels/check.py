"""Does a kernel compute the same attention as the reference, values and gradients?"""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import Tensor

from ..checked import checked_once, disagreement, randoms
from ..masks import DOCUMENT, Mask, Packed, Window
from ..positions import Positions
from ..segments import segments
from .base import Call, Kernel
from .reference import Reference


def checked_kernel(kernel: Kernel, call: Call, q_BHLD: Tensor) -> str | None:
    """`check_kernel` of such calls on this device, once."""
    kind = q_BHLD.device, q_BHLD.dtype, q_BHLD.shape[-1], call.softcap is not None, isinstance(call.mask, Packed)
    return checked_once(kernel, kind, lambda: check_kernel(kernel, *kind))


def check_kernel(
    kernel: Kernel, device: torch.device, dtype: torch.dtype, dim: int, capped: bool = False, packed: bool = False
) -> str | None:
    """None if the kernel agrees on a small windowed GQA problem of unequal lengths, else what went wrong.

    Packed: in two documents.
    """
    random = randoms(device, dtype)
    q, k, v = random(1, 4, 37, dim), random(1, 2, 64, dim), random(1, 2, 64, dim)
    pos = torch.arange(64, device=device)[None]
    mask: Mask = Window(16)
    positions = Positions(pos[:, -37:], pos, consecutive=True, padded=False)
    if packed:
        mask, row, rows = Packed(mask), torch.arange(64), segments([(17, 44), (20, 20)], device)
        code = torch.where(row < 44, row, row - 44 + DOCUMENT).to(device)[None]
        positions = Positions(code[:, -37:], code, consecutive=True, padded=False, segments=rows)
    call = Call(positions, mask, dim**-0.5, softcap=1.0 if capped else None)
    grad = random(1, 37, 4, dim)

    def results(kernel: Kernel) -> Iterator[Tensor]:
        out, lse = kernel.forward(call, q, k, v)
        yield from (out, lse, *kernel.backward(call, grad, q, k, v, out, lse))

    names = "output", "log-sum-exp", "dq", "dk", "dv"
    truth = dict(zip(names, results(Reference()), strict=True))
    return disagreement(lambda: results(kernel), truth, dtype)
