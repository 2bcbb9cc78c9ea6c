"""Where the Triton kernels that look tokens up can be used, and a check of them on their first use."""

# B batch, H query heads, G key/value heads, L queries, D head dim, K slots of a table
from __future__ import annotations

import logging
from typing import Any

import torch
from torch import Tensor

from ..available import TRITON
from ..checked import by_itself, checked_once, disagreement, randoms
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


@by_itself
def _check(device: torch.device, dtype: torch.dtype, dim: int, group: int, per: str, by: str, one: bool) -> str | None:
    """What is wrong with the kernels for such heads on this device; None if they find keys that stand out.

    Two rows, the second shorter, and two heads of keys: what is right of the first alone would find wrong tokens for
    the others of a batch.
    """
    from . import triton_keys, triton_lookup

    random, B, G, L, K, S = randoms(device, dtype), 2, 2, 1 if one else 3, 8, 700
    q, k, filled_B = random(B, G * group, L, dim), 0.3 * random(B, G, S, dim), torch.tensor([S, S - 60], device=device)
    # what one query finds, no other does
    q *= torch.arange(dim, device=device) % L == torch.arange(L, device=device)[:, None]
    q *= (dim / q.float().square().sum(-1, keepdim=True)).sqrt().to(dtype)  # of few channels, some would be short
    q.unflatten(1, (G, group))[:, :, 1:] *= 0.1  # so that the first head decides for a group
    q_BGLD, slots = q[:, ::group], torch.arange(S, device=device)
    planted = torch.arange(100, 470, 370 // (L * K), device=device)[: L * K]
    planted = planted + 3 * torch.arange(B * G, device=device).view(B, G, 1)  # of each head its own
    k.scatter_add_(2, planted[..., None].expand(-1, -1, -1, dim), 3.0 * q_BGLD.repeat_interleave(K, 2))
    after = torch.tensor([70, 80], device=device)  # behind those that codes are centred by
    # the last of the first tokens, what is too near, and what is left behind a row's end
    never = (slots == after[:, None]) | (slots >= filled_B[:, None] - 160)
    k = torch.where(never[:, None, :, None], 5.0 * q_BGLD[:, :, :1], k)
    pages, held = paged(k, k, torch.where(slots < filled_B[:, None], slots, slots - 500), 64)
    pages = pages._replace(filled_B=filled_B)
    here = (filled_B[:, None] - 1).expand(B, L)
    settings: dict[str, Any] = {"k": K, "near": 160, "after_B": after, "per": per}
    shortlist = K if dim // L >= 16 else 8 * K  # codes of a few channels are those of many keys by chance

    # these are the queries once they are turned by a quarter of a circle
    low, high = q[..., : dim // 2], q[..., dim // 2 : dim // 2 * 2]
    before = torch.cat([high, -low, q[..., dim // 2 * 2 :]], -1)
    zeros, out = torch.zeros(dim // 2 * 2, dtype=dtype, device=device), torch.empty_like(q)

    def found(table_BTLK: Tensor) -> Tensor:
        own = table_BTLK if per == "group" else table_BTLK[:, ::group]
        return own.sort(-1).values.double()

    def got() -> list[Tensor]:
        if by == "keys":
            return [found(triton_keys.choose(q, here, pages, **settings))]
        moved = triton_lookup.Moved(zeros, zeros + 1, out)
        tables = [
            triton_lookup.choose(q, here, pages, shortlist=shortlist, **settings),
            triton_lookup.choose(before, here, pages, shortlist=shortlist, **settings, moved=moved),
        ]
        return [*map(found, tables), out.double()]

    truth = {"choice": planted.view(B, G, L, K).double()}
    if by == "signs":
        truth |= {"choice of rotated queries": truth["choice"], "rotation": q.double()}
    reason = disagreement(got, truth, torch.float64)
    del held  # what the addresses are of was needed until here
    if reason is not None:
        logger.warning("the Triton kernels for looking tokens up are not used, and tokens take longer: %s", reason)
    return reason
