"""What Triton's interpreter runs reads and writes what its launch was given, and nothing that nobody has written.

On a GPU a kernel that reads behind a tensor finds whatever lies there, in the interpreter mostly zeros, and a test of
values passes by luck. Here such a read is an error, and new memory holds nan, or the largest whole number.
"""

from __future__ import annotations

import weakref
from typing import Any

import torch
from torch import Tensor

Extent = tuple[int, int]  # the first byte, and the one behind the last
_address = Tensor.data_ptr


class OutOfBounds(BaseException):
    """A kernel reads or writes what is not its own. No `Exception`: checks of kernels catch these."""


def extent(x: Tensor) -> Extent:
    """Where the elements of a tensor lie."""
    reach = sum((n - 1) * step for n, step in zip(x.shape, x.stride(), strict=True)) + 1 if x.numel() else 0
    return _address(x), _address(x) + reach * x.element_size()


class Bounds:
    """The memory that kernels may use: their tensors, and tensors whose address somebody has asked for."""

    def __init__(self) -> None:
        self.addressed: dict[int, weakref.ref[Tensor]] = {}
        self.given: dict[str, Extent] = {}  # of the launch that runs, by argument
        self.others: list[Extent] = []
        self.kernel = ""

    def note(self, x: Tensor) -> int:
        """The address of a tensor, for whoever asks."""
        if not self.kernel:
            self.addressed[id(x)] = weakref.ref(x)
        return _address(x)

    def begin(self, kernel: str, tensors: dict[str, Tensor]) -> None:
        """A launch with these."""
        self.addressed = {key: ref for key, ref in self.addressed.items() if ref() is not None}
        alive = (ref() for ref in self.addressed.values())
        self.kernel, self.given = kernel, {name: extent(x) for name, x in tensors.items()}
        self.others = [extent(x) for x in alive if x is not None]

    def check(self, pointers: Any, mask: Any, what: str) -> None:
        """OutOfBounds unless all that is not masked lies in memory that may be used."""
        import numpy as np
        from triton.runtime.interpreter import _get_np_dtype

        at = pointers.data[np.broadcast_to(mask.data, pointers.data.shape).astype(bool)].astype(np.int64)
        size, rest = np.dtype(_get_np_dtype(pointers.get_element_ty())).itemsize, at
        for start, stop in (*self.given.values(), *self.others):
            rest = rest[(rest < start) | (rest + size > stop)]
            if not rest.size:
                return
        behind = [(stop, name) for name, (_, stop) in self.given.items() if stop <= rest[0]]
        raise OutOfBounds(
            f"{self.kernel} {what} {rest.size} of {at.size} elements that are in no tensor it was given; the argument "
            f"that ends nearest before the first of them, by {int(rest[0]) - max(behind)[0]} bytes, is {max(behind)[1]}"
            if behind
            else f"{self.kernel} {what} {rest.size} of {at.size} elements before all tensors that it was given"
        )


def watch() -> None:
    """From now on, in this process."""
    from triton.runtime import interpreter

    bounds, builder, launch = Bounds(), interpreter.InterpreterBuilder, interpreter.GridExecutor.__call__

    def checked(name: str, what: str, mask_at: int) -> None:
        plain = getattr(builder, name)

        def access(self: Any, *given: Any) -> Any:
            pointers = given[1] if name == "create_atomic_rmw" else given[0]
            bounds.check(pointers, given[mask_at], what)
            return plain(self, *given)

        setattr(builder, name, access)

    def launched(self: Any, *given: Any, **named: Any) -> Any:
        every = {**dict(zip(self.arg_names, given, strict=False)), **named}
        bounds.begin(self.fn.__name__, {name: x for name, x in every.items() if isinstance(x, Tensor)})
        try:
            return launch(self, *given, **named)
        finally:
            bounds.kernel = ""

    # a load without a mask is one with a mask
    checked("create_masked_load", "reads", 1)
    checked("create_masked_store", "writes", 2)
    checked("create_atomic_rmw", "changes", 3)
    interpreter.GridExecutor.__call__ = launched
    Tensor.data_ptr = lambda x: bounds.note(x)  # type: ignore[method-assign]
    torch.use_deterministic_algorithms(True, warn_only=True)  # fills new memory
