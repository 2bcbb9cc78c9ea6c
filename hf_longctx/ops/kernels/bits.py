"""Where codes can be multiplied bit by bit, and a check of it on first use."""

from __future__ import annotations

import logging
from typing import Any

import torch
from torch import Tensor

from ..checked import by_itself, checked_once, randoms
from ..paged import paged
from ..pages import Pages

logger = logging.getLogger("hf_longctx")
KEPT = 4  # tokens of a check: fewer than its blocks, so that they have a bound to reach
FROM, BELOW = (8, 0), (10, 0)  # compute capabilities whose tensor cores do it: later ones take it apart


def unsupported_reason(q_BHLD: Tensor, pages: Pages, per: str) -> str | None:
    """Why `triton_bits` cannot score codes for such queries; None if it can."""
    if not q_BHLD.is_cuda:
        return "tensors are not on a CUDA device"
    _, H, L, D = q_BHLD.shape
    kind = q_BHLD.device, D, H // pages.mean_BGD.shape[1], per, L == 1
    return checked_once(unsupported_reason, kind, lambda: _check(*kind))


@by_itself
def _check(device: torch.device, dim: int, group: int, per: str, one: bool) -> str | None:
    """Why not on this device; None if scores and the best tokens are those of Triton's own kernels, of two rows.

    Of one query each, or of several: those go by another kernel to their scores.
    """
    if not FROM <= torch.cuda.get_device_capability(device) < BELOW:
        return "the tensor cores of this GPU do not multiply bits"
    random, B, G, S, L = randoms(device, torch.float32), 2, 2, 500, 1 if one else 3
    q, k = random(B, G * group, L, dim), random(B, G, S, dim)
    pos = torch.arange(S, device=device).repeat(B, 1)
    pos[:, 100:300:3] = -1
    pages, held = paged(k, k, pos, 64)
    pages = pages._replace(filled_B=torch.tensor([S, S - 60], device=device))
    # each query sees some tokens more than the one before it
    here = pages.filled_B[:, None] - 1 - 30 * torch.arange(L - 1, -1, -1, device=device)
    given: dict[str, Any] = {
        "near": 130,
        "after_B": torch.tensor([20, 40], device=device),
        "per": per,
        "shortlist": KEPT,
    }
    try:
        from .triton_lookup import shortlisted

        best, kept = [], []
        for by_bits in (True, False):
            scores, (_, slots), _ = shortlisted(q, here, pages, **given, by_bits=by_bits)
            best.append(torch.cat([scores[b, ..., : -(-n // 64)] for b, n in enumerate((S, S - 60))], -1))
            kept.append(slots.sort().values)
        # Triton's are taken as they are here, and checked with keys that stand out by `lookup`
        if torch.allclose(best[0], best[1], rtol=1e-5, atol=1e-5) and torch.equal(kept[0], kept[1]):
            return None
        reason = "their scores are not those of the other kernels"
    except Exception as error:  # Triton, its compiler and the driver raise whatever they like
        reason = f"their check raised {type(error).__name__}: {error}"
    finally:
        del held  # what the addresses are of was needed until here
    logger.warning("products of bits are not used to look tokens up, which takes longer: %s", reason)
    return reason
