"""Kernels that run beside others, on a second stream, while a CUDA graph is recorded."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial

import torch

_SIDES: dict[tuple[torch.device, int], torch.cuda.Stream] = {}


@contextmanager
def beside(device: torch.device) -> Iterator[Callable[[], None]]:
    """What is launched inside runs beside what is launched afterwards, until the function that is given is called.

    What it reads must be held until then. Without a recording all runs in order: a second stream would take the host
    longer than the device gains, while a graph knows of both from the start.
    """
    if device.type != "cuda" or not torch.cuda.is_current_stream_capturing():
        yield lambda: None
        return
    current = torch.cuda.current_stream(device)
    side = _SIDES.get((device, current.cuda_stream))
    if side is None:
        side = _SIDES[device, current.cuda_stream] = torch.cuda.Stream(device)
    side.wait_stream(current)
    with torch.cuda.stream(side):
        yield partial(current.wait_stream, side)
