"""Soft-capping of scores: s becomes cap * tanh(s / cap), after the scale, before a bias and the mask (Gemma 2)."""

from __future__ import annotations

import torch
from torch import Tensor


def soft_capped(scores: Tensor, softcap: float | None) -> Tensor:
    """Scaled scores, capped; without a cap, as they are."""
    return scores if softcap is None else softcap * torch.tanh(scores / softcap)


def cap_slope(capped: Tensor, softcap: float | None) -> Tensor | float:
    """The derivative of the cap at scores that are capped already; 1 without a cap."""
    return 1.0 if softcap is None else 1 - (capped / softcap).square()
