"""Where the best tokens by their codes can be found in one pass behind a sample, and a check of it on first use."""

from __future__ import annotations

import logging

import torch
from torch import Tensor

from ..checked import checked_once, disagreement, randoms
from ..paged import paged
from ..pages import PAGE, Pages

logger = logging.getLogger("hf_longctx")
SLOTS, KEPT = 2 * PAGE + 100, 100  # of a check: one of four tokens is in the sample


def unsupported_reason(q_BHLD: Tensor, pages: Pages, per: str) -> str | None:
    """Why `triton_sampled` cannot find tokens for queries that `bits` serves; None if it can."""
    if per != "group":
        return "each head has a table of its own"
    kind = q_BHLD.device, q_BHLD.shape[-1], q_BHLD.shape[1] // pages.mean_BGD.shape[1]
    return checked_once(unsupported_reason, kind, lambda: _check(*kind))


@torch.no_grad()
def _check(device: torch.device, dim: int, group: int) -> str | None:
    """Why not on this device; None if the tokens are those of the kernels that take two passes, ties included."""
    random, S = randoms(device, torch.float32), SLOTS
    q, k = random(1, 2 * group, 1, dim), random(1, 2, S, dim)
    k[:, 1] = k[:, 1, :1]  # keys that are all alike: the first of them are the best
    pos = torch.arange(S, device=device)[None].clone()
    pos[:, 1000:3000:3] = -1
    pages, held = paged(k, k, pos, 64)
    at = torch.full((1, 1), S - 1, device=device), pages
    near, after = 130, torch.full((1,), 20, device=device)

    def found(sampled: bool) -> list[Tensor]:
        from .triton_lookup import Shapes, prepared, shortlisted

        shapes = Shapes(q, pages, "group", True, sampled)
        number, slot = shortlisted(prepared(q, pages, shapes), *at, shapes, near, after, KEPT)
        return [number.double(), slot.sort().values.double()]

    truth = dict(zip(("number of tokens", "choice"), found(False), strict=True))
    reason = disagreement(lambda: found(True), truth, torch.float64)
    del held  # what the addresses are of was needed until here
    if reason is not None:
        logger.warning("tokens are not found behind a sample of them, which takes longer: %s", reason)
    return reason
