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
    """Buffers of a model's layers. They grow with its batches; those in use are never more than were at a time.

    Args:
        pin: Register them with CUDA. Without, copies wait.
    """

    def __init__(self, pin: bool = True) -> None:
        self.pin = pin
        self.free: list[Tensor] = []
        self.bytes = 0  # of all buffers that exist

    def take(self, size: int) -> Tensor:
        """A buffer of at least `size` bytes, the smallest one that is free, or a new one in place of the largest."""
        fits = [i for i, buffer in enumerate(self.free) if buffer.numel() >= size]
        if fits:
            return self.free.pop(min(fits, key=lambda i: self.free[i].numel()))
        if self.free:
            largest = max(range(len(self.free)), key=lambda i: self.free[i].numel())
            self.bytes -= self.free.pop(largest).numel()  # too small: it goes, so that their number does not grow
        buffer = torch.empty(size, dtype=torch.uint8)
        if self.pin:
            _pin(buffer, self.bytes)
        self.bytes += size
        return buffer

    def give(self, buffer: Tensor) -> None:
        """Take a buffer back. Copies from it may still wait in the stream in which the next copy to it will run."""
        self.free.append(buffer)

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
