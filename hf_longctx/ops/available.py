"""Which optional packages are installed, and what the installed torch can do."""

from __future__ import annotations

import importlib.metadata
import importlib.util
from collections.abc import Collection

import torch
from packaging.version import Version
from torch import Tensor

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


def _derives_while_tracing() -> bool:
    # torch 2.11 traces the backward of attention wrongly, without a word: gradients are off by as much as they are
    return Version(torch.__version__) >= Version("2.13")


# constants, not cached functions: torch.compile traces through the reads
TRITON = importlib.util.find_spec("triton") is not None  # comes with CUDA builds of torch
DERIVES_WHILE_TRACING = _derives_while_tracing()  # does torch.compile keep the gradients of attention right?
FLASH_ATTN_LACKS = _flash_attn_lacks()  # None: it is installed


def by_triton(x: Tensor, devices: Collection[str]) -> bool:
    """Can a Triton kernel be given such a tensor, as far as is known without a check? Of these kinds of devices."""
    return TRITON and x.device.type in devices and not torch.compiler.is_compiling() and 0 not in x.shape
