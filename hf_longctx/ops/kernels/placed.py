"""Triton launches on the current device, whichever its tensors are on: layers of one model may be on several GPUs."""

from __future__ import annotations

import contextlib
from typing import Any

import torch
from torch import Tensor


def on_device_of(x: Tensor) -> Any:
    """A context in which a Triton kernel runs where `x` is, and in order with torch's kernels there."""
    return torch.cuda.device(x.device) if x.is_cuda else contextlib.nullcontext()
