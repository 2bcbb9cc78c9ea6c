"""What a layer does with its rotation and its cache: watched, because families say so in attributes of many names.

A forward of a few tokens tells, over the layer's own code without its rotation. It stops where attention begins.
"""

# B batch, L tokens, X hidden width
from __future__ import annotations

import contextlib
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

from ..ops.layout import RotaryLayout, rotary_layout
from ..settings import ATTENTION_NAMES
from ..upstream.caches import given_cache
from ..upstream.signatures import parameters
from .subclass import stock_class
from .unrotated import Note, noting, unrotated
from .ways import named, reach_of

LENT = "shared_kv_states"  # the argument that holds the keys and values of other layers


class _Touched(Exception):
    """The layer computes something from its cosines that is no call of a rotary function."""


class Attended(Exception):
    """The layer has come to its attention."""


@dataclass(frozen=True)
class Found:
    """What a layer does.

    Args:
        layouts: Those that its rotary embedding may have: a slice is at the beginning of a head or at its end. None of
            them: it does not rotate.
        lends: It has keys of its own; else it reads another layer's.
        elsewhere: It caches its keys under another index than its `layer_idx`: its weights are in several layers.
        checked: It has passed the self-check, with the one layout that is left.
        lender: Its forward must be handed something that holds other layers' keys.
    """

    layouts: tuple[RotaryLayout, ...] = ()
    lends: bool = True
    elsewhere: bool = False
    checked: bool = False
    lender: bool = False

    @property
    def layout(self) -> RotaryLayout | None:
        """How it rotates; None: it does not."""
        return self.layouts[0] if self.layouts else None


class _Watch(TorchFunctionMode):
    """Raises `_Touched` as soon as anything is computed from some tensors."""

    def __init__(self, tensors: tuple[Tensor, ...]) -> None:
        super().__init__()
        self.tensors = tensors

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        used = any(x is y for x in (*args, *(kwargs or {}).values()) for y in self.tensors)
        if used and func.__name__ not in ("__get__", "to"):  # looking at its shape or dtype does not count
            raise _Touched("it rotates keys in a way of its own, not by a function with cosines among its arguments")
        return func(*args, **(kwargs or {}))


class Through:
    """Stands for a cache: gives keys and values back as they came, and says what they were."""

    kept: tuple[Tensor, Tensor] | None = None
    index: Any = None  # of the layer that they came from

    def update(
        self, keys: Tensor, values: Tensor, index: Any = None, *args: Any, **kwargs: Any
    ) -> tuple[Tensor, Tensor]:
        """See transformers' `Cache`."""
        self.kept, self.index = (keys, values), index
        return keys, values

    def get_seq_length(self, *args: Any) -> int:
        """How many tokens were cached before: none."""
        return 0


class _Spy(Through):
    """The same for a layer that is to do nothing else with its cache."""

    def __getattr__(self, name: str) -> Any:
        raise TypeError(f"its attention does more with the cache than store keys and values: it asks for {name}")


class _Dims:
    """Takes the place of a layer's attention: how wide its heads are."""

    def __call__(self, module: Any, query: Tensor, *args: Any) -> Any:
        self.dims = query.shape[-1]
        raise Attended


@torch.no_grad()
def look(module: Any, hidden_BLX: Tensor, embeddings: Any, more: dict[str, Any]) -> Found:
    """Watch a layer's forward with these position embeddings (None: it gets none). Works on the meta device as well.

    `more` holds numbers and names that the model hands to it. Any error of the forward is raised; TypeError for one
    that rotates or attends in an unknown way.
    """
    stock = stock_class(module)
    lent = parameters(stock.forward).get(LENT)
    try:
        if lent is None or lent.default is not lent.empty:
            return _look(module, stock, hidden_BLX, embeddings, more, False)
    except (TypeError, AttributeError):
        if lent is None:
            raise
    return _look(module, stock, hidden_BLX, embeddings, more, True)


def _look(module: Any, stock: Any, hidden_BLX: Tensor, embeddings: Any, more: dict[str, Any], lender: bool) -> Found:
    reach, spy, attention = reach_of(stock), _Spy(), _Dims()
    length = hidden_BLX.shape[1]
    pos = torch.arange(length, device=hidden_BLX.device)[None]
    kwargs = {"attention_mask": None, "position_ids": pos, **given_cache(stock.forward, spy)}
    kwargs = arguments(stock, {**kwargs, **more}, lender)
    tensors = () if embeddings is None else (embeddings,) if isinstance(embeddings, Tensor) else tuple(embeddings)
    with evaluating(module), named(module, ATTENTION_NAMES["sdpa"]), noting() as notes, _Watch(tensors):
        try:
            reach.run(unrotated(stock.forward), module, attention, hidden_BLX, {**kwargs, **reach.given(embeddings)})
        except Attended:
            pass
        else:
            raise TypeError("its attention cannot be reached: what it is called with does not come to it")
    lends = spy.kept is not None
    elsewhere = lends and spy.index != module.layer_idx
    return Found(tuple(_layouts(notes, attention.dims, length)), lends, elsewhere, lender=lender)


def _layouts(notes: list[Note], dims: int, length: int) -> Iterator[RotaryLayout]:
    if not notes:
        return
    note = notes[0]
    if any(other[:3] != note[:3] or other.shape[-1] != note.shape[-1] for other in notes):
        raise TypeError("it rotates parts of its queries and keys in different ways")
    size = note.shape[-1]
    for start in dict.fromkeys((0, dims - size)):
        cut = None if size == dims else size
        yield rotary_layout(
            note.function, note.n_tensors, note.keywords, note.shape[1] == length, start, cut, note.order
        )


def arguments(stock: Any, kwargs: dict[str, Any], lender: bool | None = None) -> dict[str, Any]:
    """`kwargs`, with None for what a forward insists on beyond them, or stand-ins for other layers' keys.

    `lender` says whether it gets the latter; None: if it takes them.
    """
    names = parameters(stock.forward)
    for name, parameter in names.items():
        needed = parameter.default is parameter.empty and parameter.kind is parameter.POSITIONAL_OR_KEYWORD
        if needed and name not in ("self", "hidden_states", "position_embeddings"):
            kwargs.setdefault(name, None)
    return {**kwargs, LENT: _Lender()} if lender or (lender is None and LENT in names) else kwargs


class _Lender(dict):
    """Any layer's keys and values; nobody looks at them."""

    def __missing__(self, kind: Any) -> tuple[Tensor, Tensor]:
        return torch.empty(1, 1, 1, 1), torch.empty(1, 1, 1, 1)


@contextlib.contextmanager
def evaluating(module: nn.Module) -> Iterator[None]:
    """Put every part of `module` into evaluation mode, and then back."""
    training = [(m, m.training) for m in module.modules()]
    module.eval()
    try:
        yield
    finally:
        for submodule, was in training:
            submodule.training = was
