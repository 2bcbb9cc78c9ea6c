"""Two parts of one softmax as one, by their log-sum-exps."""

# B batch, H query heads, L queries, D head dim
from __future__ import annotations

import torch
from torch import Tensor


def merge(out_BLHD: Tensor, lse_BHL: Tensor, part_BLHD: Tensor, part_lse_BHL: Tensor) -> tuple[Tensor, Tensor]:
    """Two parts of one softmax as one. Log-sum-exps are fp32 (fp64 for fp64 inputs); -inf is a row without keys."""
    lse = torch.logaddexp(lse_BHL, part_lse_BHL)
    base = torch.where(lse == float("-inf"), 0.0, lse)  # rows without any key: exp(-inf - 0) = 0, not nan
    old = torch.exp(lse_BHL - base).transpose(1, 2)[..., None]
    new = torch.exp(part_lse_BHL - base).transpose(1, 2)[..., None]
    return out_BLHD * old + part_BLHD * new, lse
