"""`HostBuffers`: pinned memory on the host, of exactly the size asked for, used again and again.

torch rounds pinned tensors up to a power of two (1.7 times what was asked, measured); memory that is registered with
CUDA afterwards is as pinned, and has the size that it has.
"""

from __future__ import annotations

import weakref
from typing import Any

import torch
from torch import Tensor

GIB = 2**30


class HostBuffers:
    """Buffers of a model's layers. They grow with its batches; there are no more than are in use at once.

    Args:
        pin: Register them with CUDA. Without, copies wait.
    """

    def __init__(self, pin: bool = True) -> None:
        self.pin = pin
        self.free: dict[int, list[Tensor]] = {}
        self.bytes = 0  # of all buffers that exist

    def take(self, size: int, kind: int = 0) -> Tensor:
        """A buffer of at least `size` bytes.

        Args:
            size: In bytes.
            kind: Whose sizes are alike: those of layers' outputs, or of their log-sum-exps.
        """
        free = self.free.setdefault(kind, [])
        fits = next((i for i, buffer in enumerate(free) if buffer.numel() >= size), None)
        if fits is not None:
            return free.pop(fits)
        if free:
            self.bytes -= free.pop().numel()  # too small: a new one comes in its place
        buffer = torch.empty(size, dtype=torch.uint8)
        if self.pin:
            _pin(buffer, self.bytes)
        self.bytes += size
        return buffer

    def give(self, buffer: Tensor, kind: int = 0) -> None:
        """Take a buffer back. Copies from it may still wait in the stream in which the next copy to it will run."""
        self.free[kind].append(buffer)

    def __deepcopy__(self, memo: Any) -> HostBuffers:
        return HostBuffers(self.pin)


def _pin(buffer: Tensor, before: int) -> None:
    address, size = buffer.data_ptr(), buffer.numel()
    if int(torch.cuda.cudart().cudaHostRegister(address, size, 0)):
        raise RuntimeError(
            f"offload=True: the host has no {size / GIB:.1f} GiB of pinned memory more, after {before / GIB:.1f} GiB "
            f"for other layers. Set offload=False, shorten the batch, or raise the limit of locked memory (ulimit -l)."
        )
    weakref.finalize(buffer, _unpin, address)


def _unpin(address: int) -> None:
    torch.cuda.synchronize()  # a copy may still read it
    torch.cuda.cudart().cudaHostUnregister(address)
