"""What is the same for all layers of a cache, such as where their tokens stand, made once a forward."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

Apply = Callable[..., Any]  # `each`, or a `Once`


def each(f: Callable[..., Any], *args: Any) -> Any:
    """`f` of its arguments: where nothing is shared."""
    return f(*args)


class Once:
    """`each`, but a function of the same tensors is called once, and all get its one result, which none may change.

    Of equal tensors that are two objects it is called twice. So layers that were given the same positions, and did the
    same with them, hold one tensor, while each row or layer that went another way has its own.
    """

    def __init__(self) -> None:
        self._made: dict[Any, tuple[Any, Any]] = {}

    def __call__(self, f: Callable[..., Any], *args: Any) -> Any:
        """`f` is to be the same object each time, and its arguments tensors and what can be a key."""
        key = f, *(id(arg) if isinstance(arg, Tensor) else arg for arg in args)
        if key not in self._made:
            self._made[key] = f(*args), args  # with them, whose ids no other objects then have
        return self._made[key][0]


def made_once() -> Apply:
    """A new `Once`; `each` where torch compiles, which has no objects to tell apart."""
    return each if torch.compiler.is_compiling() else Once()
