"""A process that sees two GPUs, as far as Trainer knows, on a machine without any: what it trains stays on the CPU."""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any

import torch
from transformers import TrainingArguments


def two_gpus(setattr_: Callable[[Any, str, Any], None]) -> None:
    """By `setattr`, or that of a monkeypatch. transformers itself then counts the GPUs, and chooses DataParallel."""
    stock = TrainingArguments.__post_init__

    @functools.wraps(stock)
    def post_init(self: Any) -> None:
        self.use_cpu = False  # which would count none
        stock(self)

    setattr_(torch.cuda, "device_count", lambda: 2)
    setattr_(TrainingArguments, "__post_init__", post_init)
