"""Where the Triton kernels that look tokens up can be used, and a check of them on their first use."""

# B batch, H query heads, G key/value heads, L queries, D head dim, K slots of a table
from __future__ import annotations

import logging
from typing import Any

import torch
from torch import Tensor

from ..available import TRITON
from ..checked import checked_once, disagreement, randoms
from ..paged import paged
from ..pages import Pages
from .base import NO_TRITON

logger = logging.getLogger("hf_longctx")
FEW = 16  # queries that the kernels serve faster than torch whatever the length: each, or a few, read all codes or keys
DTYPES = (torch.float16, torch.bfloat16, torch.float32)


def unsupported_reason(q_BHLD: Tensor, pages: Pages, per: str, by: str = "signs") -> str | None:
    """Why `triton_lookup.choose`, or with by="keys" `triton_keys.choose`, cannot do these queries; None if it can."""
    _, H, L, D = q_BHLD.shape
    if not q_BHLD.is_cuda:
        return "tensors are not on a CUDA device"
    if not TRITON or torch.compiler.is_compiling():
        return NO_TRITON
    if q_BHLD.dtype != pages.dtype or pages.dtype not in DTYPES:
        return f"dtypes {q_BHLD.dtype} and {pages.dtype} are not one of float16, bfloat16 and float32"
    group = H // pages.mean_BGD.shape[1]
    if D > 256 or group > 32:
        return f"head dim {D} is over 256, or {group} heads share keys, more than 32"
    kind = q_BHLD.device, q_BHLD.dtype, D, group, per, by, L == 1
    return checked_once(unsupported_reason, kind, lambda: _check(*kind))


@torch.no_grad()
def _check(device: torch.device, dtype: torch.dtype, dim: int, group: int, per: str, by: str, one: bool) -> str | None:
    """What is wrong with the kernels for such heads on this device; None if they find keys that stand out."""
    from . import triton_keys, triton_lookup

    random, L, K, S = randoms(device, dtype), 1 if one else 3, 8, 700
    q, k = random(1, group, L, dim), random(1, 1, S, dim)
    planted = torch.arange(100, 500, 400 // (L * K), device=device)[: L * K].view(L, K)
    q[:, 1:] *= 0.1  # so that the first head decides for a group
    k[:, 0, planted] += 3.0 * q[:, 0, :, None]
    k[:, 0, 550:] = 5.0 * q[:, 0, :1]  # too near
    pages, held = paged(k, k, torch.arange(S, device=device)[None], 64)
    here = torch.full((1, L), S - 1, device=device)
    after = torch.full((1,), 20, device=device)
    settings: dict[str, Any] = {"k": K, "near": 160, "after_B": after, "per": per}

    # these are the queries once they are turned by a quarter of a circle
    low, high = q[..., : dim // 2], q[..., dim // 2 : dim // 2 * 2]
    before = torch.cat([high, -low, q[..., dim // 2 * 2 :]], -1)
    zeros, out = torch.zeros(dim // 2 * 2, dtype=dtype, device=device), torch.empty_like(q)

    def got() -> list[Tensor]:
        if by == "keys":
            return [triton_keys.choose(q, here, pages, **settings)[:, 0].sort(-1).values.double()]
        moved = triton_lookup.Moved(zeros, zeros + 1, out)
        tables = [
            triton_lookup.choose(q, here, pages, shortlist=K, **settings),
            triton_lookup.choose(before, here, pages, shortlist=K, **settings, moved=moved),
        ]
        return [*(table[:, 0].sort(-1).values.double() for table in tables), out.double()]

    truth = {"choice": planted[None].double()}
    if by == "signs":
        truth |= {"choice of rotated queries": truth["choice"], "rotation": q.double()}
    reason = disagreement(got, truth, torch.float64)
    del held  # what the addresses are of was needed until here
    if reason is not None:
        logger.warning("the Triton kernels for looking tokens up are not used, and tokens take longer: %s", reason)
    return reason
