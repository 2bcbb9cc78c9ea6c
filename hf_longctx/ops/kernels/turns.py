"""Cosines and sines of the distances at which one query a row stands from its keys, taken from a table of all."""

# B batch, S keys, N distances, R rotary dims
from __future__ import annotations

import logging

import torch
from torch import Tensor

from ..available import by_triton
from ..checked import by_itself, checked_once, randoms

logger = logging.getLogger("hf_longctx")
DEVICES = ("cuda",)


def turns(cos_NR: Tensor, sin_NR: Tensor, q_pos_B1: Tensor, k_pos_BS: Tensor) -> tuple[Tensor, Tensor]:
    """(B, S, R) each: the row of each key's distance, of contiguous tables. Any finite ones at others, or where -1 is.

    Args:
        cos_NR: Of distances 0 to N - 1.
        sin_NR: The same.
        q_pos_B1: Positions of the queries.
        k_pos_BS: Positions of the keys.
    """
    kind = cos_NR.device, cos_NR.dtype, cos_NR.shape[-1]
    if by_triton(k_pos_BS, DEVICES) and checked_once(turns, kind, lambda: _check(*kind)) is None:
        from .triton_turns import turns as by_kernel

        return by_kernel(cos_NR, sin_NR, q_pos_B1, k_pos_BS)
    return _by_torch(cos_NR, sin_NR, q_pos_B1, k_pos_BS)


def _by_torch(cos_NR: Tensor, sin_NR: Tensor, q_pos_B1: Tensor, k_pos_BS: Tensor) -> tuple[Tensor, Tensor]:
    distance_BS = (q_pos_B1 - k_pos_BS).clamp(min=0, max=len(cos_NR) - 1)
    return cos_NR[distance_BS], sin_NR[distance_BS]


@by_itself
def _check(device: torch.device, dtype: torch.dtype, dim: int) -> str | None:
    """What is wrong with the kernel on this device; None if it takes the rows that torch takes, bit for bit."""
    table = randoms(device, dtype)(2, 50, dim)
    k_pos = torch.arange(130, device=device).flip(0).expand(2, -1)
    given = *table, torch.tensor([[129], [60]], device=device), k_pos
    distance = given[2] - k_pos
    there = ((distance >= 0) & (distance < 50))[..., None]
    try:
        from .triton_turns import turns as by_kernel

        pairs = zip(by_kernel(*given), _by_torch(*given), strict=True)
        same = all(torch.equal(one, torch.where(there, other, 0.0)) for one, other in pairs)
        reason = None if same else "what it takes is not what is in the table"
    except Exception as error:  # Triton, its compiler and the driver raise whatever they like
        reason = f"its check raised {type(error).__name__}: {error}"
    if reason is not None:
        logger.warning("the Triton kernel for distances in a window is not used, and tokens take longer: %s", reason)
    return reason
