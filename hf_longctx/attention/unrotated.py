"""A model's own forward without its rotary embedding: queries and keys stay un-rotated, and so enter the cache.

The very same code over the very same globals, but for those that are rotary functions: these return their tensors as
they are. Nothing of the model's module is changed, and no model code is copied. Which function was called, and how, can
be noted, so that the rotation can be made up for when keys are read.
"""

# D dims that a rotary function is given
from __future__ import annotations

import contextlib
import functools
import inspect
import types
from collections.abc import Callable, Iterator
from contextvars import ContextVar
from typing import Any, NamedTuple

import torch
from torch import Tensor

from ..ops.layout import angle_names
from ..upstream.signatures import content_of, renamed


class Note(NamedTuple):
    """One call of a rotary function: what it was given, and in which order its output has the dims."""

    function: Callable[..., Any]
    n_tensors: int
    keywords: tuple[tuple[str, Any], ...]
    shape: torch.Size
    order: tuple[int, ...] | None


_notes: ContextVar[list[Note] | None] = ContextVar("_notes", default=None)


@contextlib.contextmanager
def noting() -> Iterator[list[Note]]:
    """Note the calls of rotary functions meanwhile."""
    notes: list[Note] = []
    token = _notes.set(notes)
    try:
        yield notes
    finally:
        _notes.reset(token)


@functools.cache
def unrotated(forward: Callable[..., Any]) -> Callable[..., Any]:
    """A forward whose rotary functions do nothing: those of its globals named so that take cosines or frequencies.

    A function that reorders the dims still does, so that keys are cached in the order in which they are rotated later.
    Under decorators of other code, which stay, the same holds for the forward that they are put on.
    """
    return _copy(renamed(forward), {})


def _copy(forward: Any, made: dict[int, Any]) -> Any:
    """`forward` without its rotation; itself if it has none. `made` has those that were met before."""
    if not isinstance(forward, types.FunctionType) or id(forward) in made:
        return made.get(id(forward), forward)
    made[id(forward)] = forward  # until it is known: functions may close over each other
    found = {name: forward.__globals__.get(name) for name in forward.__code__.co_names if "rotary" in name.lower()}
    skipped = {name: _skipped(f) for name, f in found.items() if callable(f) and angle_names(f)}
    cells = forward.__closure__ or ()
    within = [_copy(content_of(cell), made) for cell in cells]
    same = all(new is content_of(cell) for new, cell in zip(within, cells, strict=True))
    if not skipped and same:
        return forward
    closure = tuple(
        cell if new is content_of(cell) else types.CellType(new) for new, cell in zip(within, cells, strict=True)
    )
    names = {**forward.__globals__, **skipped} if skipped else forward.__globals__
    if skipped:
        names.pop("__name__", None)  # by which torch.compile would look for the globals of the model's module
    copy = types.FunctionType(forward.__code__, names, forward.__name__, forward.__defaults__, closure or None)
    copy.__kwdefaults__, copy.__module__ = forward.__kwdefaults__, forward.__module__
    made[id(forward)] = copy
    return copy


@functools.cache
def _skipped(function: Callable[..., Any]) -> Callable[..., Any]:
    """A rotary function that does not rotate."""
    names = list(inspect.signature(function).parameters)
    first = names.index(angle_names(function)[0])  # tensors come before the angles
    orders: dict[int, dict[torch.device, Tensor]] = {}  # of its output, where it reorders; by dims

    def skip(*args: Any, **kwargs: Any) -> Any:
        tensors = args[:first] if len(args) >= first else (*args, *(kwargs[name] for name in names[len(args) : first]))
        if not torch.compiler.is_compiling() and _notes.get() is not None:
            with torch._C.DisableTorchFunction():  # whoever watches the forward is not to see this
                _note(function, names, tensors, {**dict(zip(names, args, strict=False)), **kwargs}, orders)
        if orders:
            tensors = tuple(_reordered(x, orders) for x in tensors)
        return tensors[0] if first == 1 else tensors

    return skip


def _reordered(x: Tensor, orders: dict[int, dict[torch.device, Tensor]]) -> Tensor:
    order = orders.get(x.shape[-1])
    if order is None:
        return x
    if x.device not in order:
        order[x.device] = next(iter(order.values())).to(x.device)
    return x.index_select(-1, order[x.device])


def _note(
    function: Callable[..., Any],
    names: list[str],
    tensors: tuple[Tensor, ...],
    given: dict[str, Any],
    orders: dict[int, dict[torch.device, Tensor]],
) -> None:
    """Note a call, and learn the order of its output."""
    angles, count = angle_names(function), len(tensors)
    keywords = tuple((name, value) for name, value in given.items() if name not in (*names[:count], *angles))
    if any(isinstance(value, Tensor) for _, value in keywords):
        raise TypeError(f"{function.__name__} is given tensors besides those to rotate and {', '.join(angles)}")
    order = _order(function, tensors, {name: given[name] for name in angles}, dict(keywords))
    if order is not None:
        orders[len(order)] = {torch.device("cpu"): torch.tensor(order, device="cpu")}
    notes = _notes.get()
    assert notes is not None
    notes.append(Note(function, count, keywords, tensors[0].shape, order))


def _order(
    function: Callable[..., Any], tensors: tuple[Tensor, ...], angles: dict[str, Tensor], keywords: dict[str, Any]
) -> tuple[int, ...] | None:
    """Where each dim of the output comes from, tried at angle 0; None: from the same place."""
    dims = tensors[0].shape[-1]
    marked = [torch.arange(dims, dtype=torch.float32, device="cpu").expand(x.shape).contiguous() for x in tensors]
    still = []
    for name, x in angles.items():
        dtype = torch.complex64 if x.is_complex() else torch.float32
        still.append(torch.full(x.shape, 0.0 if name == "sin" else 1.0, dtype=dtype, device="cpu"))
    out = function(*marked, *still, **keywords)
    row = (out if isinstance(out, Tensor) else out[0]).reshape(-1, dims)[0].round().long().tolist()
    if sorted(row) != list(range(dims)):
        raise TypeError(f"{function.__name__} does more than rotate: at angle 0 it changes what it is given")
    return None if row == list(range(dims)) else tuple(row)
