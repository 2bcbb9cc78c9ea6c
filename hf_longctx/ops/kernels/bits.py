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
    """Why not on this device; None if scores and the best tokens are those of Triton's own kernels."""
    if not FROM <= torch.cuda.get_device_capability(device) < BELOW:
        return "the tensor cores of this GPU do not multiply bits"
    random, G, S = randoms(device, torch.float32), 2, 500
    q, k = random(1, G * group, 1, dim), random(1, G, S, dim)
    pos = torch.arange(S, device=device)[None].clone()
    pos[:, 100:300:3] = -1
    pages, held = paged(k, k, pos, 64)
    at = torch.full((1, 1), S - 1, device=device), pages
    near, after = 130, torch.full((1,), 20, device=device)
    try:
        from .triton_lookup import Shapes, maxima, prepared, survivors

        best, kept = [], []
        for by_bits in (True, False):
            shapes = Shapes(q, pages, per, by_bits)
            ready = prepared(q, pages, shapes)
            scored = maxima(ready, *at, shapes, near, after)
            best.append(scored[0][..., : -(-S // 64)])
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
