"""Copies to host memory on a stream of their own, beside what a device computes.

What the device computes later waits for a copy only once some more have begun, or where somebody reads host memory
(`join`); and so it does at the end of a forward, so that everybody else need not know of these streams.
"""

from __future__ import annotations

import threading
from collections import deque
from collections.abc import Iterator
from dataclasses import dataclass, field

import torch
from torch import Tensor

BEHIND = 4  # copies that are not waited for, at most: keys and values of two layers. Their sources stay until then


@dataclass
class _Side:
    """The stream beside one other, and what was begun on it: when it is done, and what it reads."""

    stream: torch.cuda.Stream
    begun: deque[tuple[torch.cuda.Event, Tensor]] = field(default_factory=deque)


_SIDES: dict[tuple[torch.device, int], _Side] = {}
_LOCK = threading.Lock()


def copy(page: Tensor, start: int, stop: int, new: Tensor) -> None:
    """Begin to write `new`, (G, stop - start, ...) on a GPU, into these slots of a pinned page (G, S, ...)."""
    if torch.compiler.is_compiling():
        for held, part in _runs(page, start, stop, new):
            held.copy_(part, non_blocking=True)
        return
    # of its own, in whole runs of memory: what attention has may change, and be given back, before it is read here
    source = new.to(page.dtype, copy=True, memory_format=torch.contiguous_format)
    current = torch.cuda.current_stream(new.device)
    with _LOCK:
        side = _SIDES.get((new.device, current.cuda_stream))
        if side is None:
            side = _SIDES[new.device, current.cuda_stream] = _Side(torch.cuda.Stream(new.device))
        side.stream.wait_stream(current)
        with torch.cuda.stream(side.stream):
            for held, part in _runs(page, start, stop, source):
                held.copy_(part, non_blocking=True)
        side.begun.append((side.stream.record_event(), source))
        _wait(side, current, BEHIND)


def _runs(page: Tensor, start: int, stop: int, new: Tensor) -> Iterator[tuple[Tensor, Tensor]]:
    """Whole runs of memory, which are copied without the host."""
    if stop - start == page.shape[1]:
        yield page, new
        return
    for head, part in zip(page, new, strict=True):
        yield head[start:stop], part


def _wait(side: _Side, current: torch.cuda.Stream, left: int) -> None:
    """Let `current` wait for all but so many; it may use their sources' memory then."""
    while len(side.begun) > left:
        current.wait_event(side.begun[0][0])
        side.begun.popleft()


def begun() -> bool:
    """Is there a copy that nothing has waited for?"""
    return any(side.begun for side in list(_SIDES.values()))


def join(device: torch.device | None) -> None:
    """Let the current stream of a device wait for what was copied beside it. The host waits for nothing."""
    if device is None or device.type != "cuda" or not begun():
        return
    current = torch.cuda.current_stream(device)
    side = _SIDES.get((device, current.cuda_stream))
    if side is not None and side.begun:
        with _LOCK:
            _wait(side, current, 0)


def join_all() -> None:
    """The same of every device."""
    if not begun():
        return
    for device in {device for device, _ in list(_SIDES)}:
        join(device)
