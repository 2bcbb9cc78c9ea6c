"""Which optional packages are here."""

from __future__ import annotations

import importlib.util

# constants, not cached functions: torch.compile traces through the reads
TRITON = importlib.util.find_spec("triton") is not None  # comes with CUDA builds of torch
FLASH_ATTN = importlib.util.find_spec("flash_attn") is not None
