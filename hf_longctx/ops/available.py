"""Which optional packages are installed."""

from __future__ import annotations

import importlib.metadata
import importlib.util

from packaging.version import Version

from ..upstream.installing import install_extra

# the first release whose low-level functions give the log-sum-exp in the form that hf_longctx reads
FLASH_ATTN_FLOOR = Version("2.7")


def _flash_attn_lacks() -> str | None:
    try:
        version = importlib.metadata.version("flash-attn")
    except importlib.metadata.PackageNotFoundError:
        return f"the package flash-attn is not installed ({install_extra('flash-attn')})"
    if Version(version) < FLASH_ATTN_FLOOR:
        return f"flash-attn {version} is older than {FLASH_ATTN_FLOOR} and gives no log-sum-exp to merge branches by"
    return None


# constants, not cached functions: torch.compile traces through the reads
TRITON = importlib.util.find_spec("triton") is not None  # comes with CUDA builds of torch
FLASH_ATTN_LACKS = _flash_attn_lacks()  # None: it is installed
