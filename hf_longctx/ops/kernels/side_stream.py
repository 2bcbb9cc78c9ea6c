"""A second CUDA stream while a graph is recorded: kernels that need not wait for each other run at the same time.

Outside of graphs everything stays on one stream: there the host, which launches kernels one by one, is the limit.
"""

from __future__ import annotations

import contextlib
import functools
from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor

from .placed import on_device_of


def recording(x: Tensor) -> bool:
    """Is a CUDA graph being recorded on the current stream of the tensor's device?"""
    if not x.is_cuda:
        return False
    with on_device_of(x):
        return torch.cuda.is_current_stream_capturing()


@functools.cache
def _side(device: torch.device) -> Any:
    """The second stream of a device. One is enough: a process records one graph at a time."""
    return torch.cuda.Stream(device)


@contextlib.contextmanager
def forked(x: Tensor) -> Iterator[Any]:
    """Gives a context whose kernels run beside those launched in the rest of the block; after it all have run.

    Only while a graph is recorded where `x` is; else the context changes nothing.

    What the kernels inside of that context read and write must be allocated before the block and live until its end.
    Then no memory is handed from one stream to the other too early: whoever gets it next on the current stream comes
    after the join. What is allocated inside of that context the second stream alone gets again, in its own order, and
    before a next block uses it, the second stream has waited for all that the current one was given.
    """
    if not recording(x):
        yield contextlib.nullcontext()
        return
    here, side = torch.cuda.current_stream(x.device), _side(x.device)
    side.wait_stream(here)
    try:
        yield torch.cuda.stream(side)
    finally:
        here.wait_stream(side)  # also after an error: a graph cannot end while a stream of it is not joined
