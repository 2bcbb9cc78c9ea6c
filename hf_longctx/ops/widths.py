"""Values of another head dim than keys: zeros make them equal for kernels that know one head dim only."""

# B batch, H heads, X queries or keys, D head dim
from __future__ import annotations

import torch
from torch import Tensor


def widened(x_BHXD: Tensor, width: int) -> Tensor:
    """Zeros behind the last dim up to a width. They add nothing to q k, and are cut off what comes of values."""
    missing = width - x_BHXD.shape[-1]
    return x_BHXD if missing <= 0 else torch.nn.functional.pad(x_BHXD, (0, missing))
