"""How scoring runs: layers compiled, and results on their way from the device."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor

from ...anatomy import find_decoder


@contextmanager
def layers_compiled(model: Any) -> Iterator[None]:
    """Every decoder layer runs compiled inside the block. Layers of one kind and all shapes share a compiled graph."""
    layers: Any = find_decoder(model).layers
    for layer in layers:
        layer.compile(dynamic=True)
    try:
        yield
    finally:
        for layer in layers:
            layer._compiled_call_impl = None


class OnItsWay:
    """A tensor on its way to the host. `wait` waits for it only, not for the work that the GPU was given after it."""

    def __init__(self, tensor: Tensor) -> None:
        self._event = None
        self._host = tensor
        if tensor.device.type == "cuda":
            self._host = torch.empty(tensor.shape, dtype=tensor.dtype, pin_memory=True)
            self._host.copy_(tensor, non_blocking=True)
            self._event = torch.cuda.Event()
            self._event.record(torch.cuda.current_stream(tensor.device))

    def wait(self) -> Tensor:
        """The tensor on the host."""
        if self._event is not None:
            self._event.synchronize()
        return self._host.cpu()
