"""A tensor in a dtype that it mostly has already."""

from __future__ import annotations

import torch
from torch import Tensor


def as_dtype(x: Tensor, dtype: torch.dtype) -> Tensor:
    """A tensor in a dtype; itself where it has it, since asking torch for that costs the host as much as a view."""
    return x if x.dtype == dtype else x.to(dtype)
