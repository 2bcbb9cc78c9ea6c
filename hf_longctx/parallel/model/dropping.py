"""Dropout on ranks: of attention it is refused, and elsewhere ranks must not drop the same features of their tokens."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import nn
from torch.nn.modules.dropout import _DropoutNd

from .groups import Groups


def attention_dropout(root: nn.Module) -> str | None:
    """Which attention module drops weights in training, and how many; None: none does."""
    for module in root.modules():
        rate = getattr(module, "attention_dropout", None)
        if isinstance(rate, (int, float)) and rate > 0 and hasattr(module, "layer_idx"):
            return f"{type(module).__name__} has attention_dropout={rate}"
    return None


@contextmanager
def dropping_apart(model: nn.Module, groups: Groups) -> Iterator[None]:
    """Let ranks drop different features of their different tokens; their generators go on alike."""
    if not model.training or not any(isinstance(m, _DropoutNd) and m.p > 0 for m in model.modules()):
        yield
        return
    seed = int(torch.randint(2**31, ()))  # of the host: the same on all ranks
    devices = [torch.cuda.current_device()] if torch.cuda.is_available() else []
    with torch.random.fork_rng(devices):
        torch.manual_seed(seed + groups.rank)
        yield
