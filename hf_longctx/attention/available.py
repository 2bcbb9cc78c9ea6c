"""Which optional packages are here. Asked once."""

from __future__ import annotations

import functools
import importlib.util


@functools.cache
def has_triton() -> bool:
    """Triton comes with CUDA builds of torch."""
    return importlib.util.find_spec("triton") is not None


@functools.cache
def has_flash_attn() -> bool:
    return importlib.util.find_spec("flash_attn") is not None
