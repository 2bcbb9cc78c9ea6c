"""Weights between those of two models of one shape (WiSE-FT, Wortsman et al. 2022)."""

from __future__ import annotations

import torch
from torch import nn


@torch.no_grad()
def average_(model: nn.Module, other: dict[str, torch.Tensor], share: float) -> None:
    """Move all weights of a model towards those of another one, by their names, by a share of the way."""
    for name, weight in model.named_parameters():
        weight.lerp_(other[name].to(weight.device, weight.dtype), share)
