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

    Of two rows: what is right of the first alone would be wrong for the others of a batch. Then, if the kernel takes
    padding, with a second row that is shorter than its queries. Packed: of one row with two documents.
    """
    for padded in (False, True)[: 2 if kernel.pads and not packed else 1]:
        with torch.autocast(device.type, enabled=False):  # see `by_itself`
            reason = _check(kernel, device, dtype, dim, capped, packed, padded)
        if reason is not None:
            return reason
    return None


def _check(
    kernel: Kernel, device: torch.device, dtype: torch.dtype, dim: int, capped: bool, packed: bool, padded: bool
) -> str | None:
    """See `check_kernel`."""
    random, B = randoms(device, dtype), 1 if packed else 2
    q, k, v = random(B, 4, 37, dim), random(B, 2, 64, dim), random(B, 2, 64, dim)
    mask: Mask = Window(16)
    if packed:
        mask, row, runs = Packed(mask), torch.arange(64), segments([(17, 44), (20, 20)], device)
        code = torch.where(row < 44, row, row - 44 + DOCUMENT).to(device)[None]
        positions = Positions(code[:, -37:], code, consecutive=True, padded=False, segments=runs)
    else:  # the second row has 24 tokens, or begins at another position
        begins = torch.tensor([[0], [-40 if padded else 5]], device=device)
        pos = (torch.arange(64, device=device) + begins).clamp(min=-1)
        positions = Positions(pos[:, -37:], pos, consecutive=True, padded=padded)
    call = Call(positions, mask, dim**-0.5, softcap=1.0 if capped else None)
    pads_BL = positions.q_pos_BL < 0  # nobody reads what queries give there
    grad = random(B, 37, 4, dim).masked_fill(pads_BL[:, :, None, None], 0)

    def results(kernel: Kernel) -> Iterator[Tensor]:
        out, lse = kernel.forward(call, q, k, v)
        dq, dk, dv = kernel.backward(call, grad, q, k, v, out, lse)
        yield out.masked_fill(pads_BL[:, :, None, None], 0)
        yield lse.masked_fill(lse == float("-inf"), 0)  # where there are no keys, and nothing else: it is merged by
        yield dq.masked_fill(pads_BL[:, None, :, None], 0)
        yield from (dk, dv)

    names = "output", "log-sum-exp", "dq", "dk", "dv"
    truth = dict(zip(names, results(Reference()), strict=True))
    return disagreement(lambda: results(kernel), truth, dtype)
