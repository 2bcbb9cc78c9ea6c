"""Samples from a model's own distribution, the same each time, which leave the random numbers of a training alone."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch

# for `generate`: what is left out would be filled with the model's own settings
FREE: dict[str, Any] = {"do_sample": True, "temperature": 1.0, "top_k": 0, "top_p": 1.0}


@contextmanager
def seeded(model: Any, seed: int) -> Iterator[None]:
    """Inside, without gradients, what is drawn on the model's device and on the CPU follows from the seed."""
    devices = [model.device] if model.device.type == "cuda" else []
    with torch.random.fork_rng(devices), torch.inference_mode():
        torch.manual_seed(seed)
        yield
