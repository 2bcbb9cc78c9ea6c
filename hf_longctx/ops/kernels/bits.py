"""Where codes can be multiplied bit by bit, and a check of it on first use."""

from __future__ import annotations

import logging

import torch
from torch import Tensor

from ..checked import checked_once, randoms
from ..paged import paged
from ..pages import Pages

logger = logging.getLogger("hf_longctx")
KEPT = 4  # tokens of a check: fewer than its blocks, so that they have a bound to reach
FROM, BELOW = (8, 0), (10, 0)  # compute capabilities whose tensor cores do it: later ones take it apart


def unsupported_reason(q_BHLD: Tensor, pages: Pages, per: str) -> str | None:
    """Why `triton_bits` cannot score codes for such queries; None if it can."""
    if not q_BHLD.is_cuda:
        return "tensors are not on a CUDA device"
    kind = q_BHLD.device, q_BHLD.shape[-1], q_BHLD.shape[1] // pages.mean_BGD.shape[1], per
    return checked_once(unsupported_reason, kind, lambda: _check(*kind))


@torch.no_grad()
def _check(device: torch.device, dim: int, group: int, per: str) -> str | None:
    """Why not on this device; None if scores and the best tokens are those of Triton's own kernels, of two rows."""
    if not FROM <= torch.cuda.get_device_capability(device) < BELOW:
        return "the tensor cores of this GPU do not multiply bits"
    random, B, G, S = randoms(device, torch.float32), 2, 2, 500
    q, k = random(B, G * group, 1, dim), random(B, G, S, dim)
    pos = torch.arange(S, device=device).repeat(B, 1)
    pos[:, 100:300:3] = -1
    pages, held = paged(k, k, pos, 64)
    pages = pages._replace(filled_B=torch.tensor([S, S - 60], device=device))
    at = (pages.filled_B - 1)[:, None], pages
    near, after = 130, torch.tensor([20, 40], device=device)
    try:
        from .triton_lookup import Shapes, maxima, prepared, survivors

        best, kept = [], []
        for by_bits in (True, False):
            shapes = Shapes(q, pages, per, by_bits)
            ready = prepared(q, pages, shapes)
            scored = maxima(ready, *at, shapes, near, after)
            best.append(torch.cat([scored[0][b, ..., : -(-n // 64)] for b, n in enumerate((S, S - 60))], -1))
            kept.append(survivors(ready, scored, *at, shapes, near, after, KEPT)[1].sort().values)
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
