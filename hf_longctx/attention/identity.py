"""The rotation that does nothing, at (almost) no cost: (cos=1, sin=0) whose products need not be computed.

A model's forward is run with its own rotation, which is left out where it would do nothing (`unrotated`). Where a
forward cannot be run so, the rotation runs on (cos, sin) as on any other; but x * ones is x, x * zeros is zeros, and
y + zeros is y, so of its passes over queries and keys only the swap of halves is left.
"""

from __future__ import annotations

import functools
import types
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from ..upstream.signatures import renamed

ROTATION = "apply_rotary_pos_emb"

SAME = {"unsqueeze", "__getitem__", "to", "float", "type_as", "contiguous", "expand", "view", "reshape"}
PRODUCTS = {"mul", "__mul__", "__rmul__", "multiply"}
SUMS = {"add", "__add__", "__radd__"}


class _Constant(Tensor):
    """A tensor of ones, or of zeros. What is not listed above happens to the plain tensor."""

    @classmethod
    def __torch_function__(cls, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        name = getattr(func, "__name__", "")
        if len(args) == 2 and not kwargs and name in PRODUCTS | SUMS and all(isinstance(x, Tensor) for x in args):
            constant, other = args if isinstance(args[0], _Constant) else args[::-1]
            assert isinstance(constant, _Constant)
            shortcut = constant.times(other) if name in PRODUCTS else constant.plus(other)
            if shortcut is not None:
                return shortcut
        plain = [_plain(x) for x in args]
        out = func(*plain, **{key: _plain(value) for key, value in (kwargs or {}).items()})
        if name in SAME and isinstance(out, Tensor) and isinstance(args[0], _Constant):
            return out.as_subclass(type(args[0]))
        return out

    def times(self, other: Tensor) -> Tensor | None:
        """The product; None: it must be computed."""
        return None

    def plus(self, other: Tensor) -> Tensor | None:
        """The sum; None: it must be computed."""
        return None

    def fits(self, other: Tensor) -> bool:
        """Does an operation with `other` have its shape and dtype?"""
        with torch._C.DisableTorchFunctionSubclass():
            here, there = tuple(self.shape), tuple(other.shape)
            same = self.dtype == other.dtype or torch.promote_types(self.dtype, other.dtype) == other.dtype
        trailing = there[len(there) - len(here) :]
        return same and len(here) <= len(there) and all(a in (1, b) for a, b in zip(here, trailing, strict=True))


class Ones(_Constant):
    """A tensor of ones."""

    def times(self, other: Tensor) -> Tensor | None:
        """See `_Constant`."""
        return other if self.fits(other) else None


class Zeros(_Constant):
    """A tensor of zeros."""

    def times(self, other: Tensor) -> Tensor | None:
        """See `_Constant`."""
        if not self.fits(other):
            return None
        plain = _plain(self)
        zero = plain[(0,) * plain.ndim] if plain.dtype == other.dtype else other.new_zeros(())
        return zero.expand(other.shape).as_subclass(Zeros)

    def plus(self, other: Tensor) -> Tensor | None:
        """See `_Constant`."""
        return other if self.fits(other) else None


def _plain(x: Any) -> Any:
    if isinstance(x, _Constant):
        with torch._C.DisableTorchFunctionSubclass():
            return x.as_subclass(Tensor)
    return x


def identity(embeddings: tuple[Tensor, Tensor]) -> tuple[Tensor, Tensor]:
    """(cos, sin) of no rotation, shaped like one row of `embeddings`; it broadcasts."""
    with torch.no_grad():
        one, zero = torch.ones_like(embeddings[0][:1, :1]), torch.zeros_like(embeddings[1][:1, :1])
    if torch.compiler.is_compiling():  # the compiler drops the products by itself
        return one, zero
    return one.as_subclass(Ones), zero.as_subclass(Zeros)


@functools.cache
def unrotated(forward: Callable[..., Any]) -> Callable[..., Any]:
    """A model's own forward that skips its `apply_rotary_pos_emb(q, k, cos, sin)` where (cos, sin) is `identity`.

    The very same code over the very same globals but for that one name; nothing of the model's module is changed.
    Forwards that find their rotation otherwise are returned as they are.
    """
    forward = renamed(forward)
    if not isinstance(forward, types.FunctionType) or ROTATION not in forward.__code__.co_names:
        return forward
    rotate = forward.__globals__.get(ROTATION)
    if not callable(rotate):
        return forward

    @functools.wraps(rotate)
    def apply(q: Tensor, k: Tensor, cos: Tensor, *args: Any, **kwargs: Any) -> Any:
        if isinstance(cos, Ones) and all(torch.promote_types(cos.dtype, x.dtype) == x.dtype for x in (q, k)):
            return q, k
        return rotate(q, k, cos, *args, **kwargs)

    names = {**forward.__globals__, ROTATION: apply}
    copy = types.FunctionType(forward.__code__, names, forward.__name__, forward.__defaults__, forward.__closure__)
    copy.__kwdefaults__ = forward.__kwdefaults__
    return copy
