"""Un-rotated keys beside the states of a recurrence, in one layer of a cache (Falcon-H1, Zamba2)."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from torch import Tensor

from .base import UnrotatedLayer

_MADE: dict[tuple[Any, Any], Any] = {}  # by both classes. No functools.cache: torch.compile traces what that wraps


def beside(ours: UnrotatedLayer, stock: Any) -> UnrotatedLayer:
    """`ours` with the states of a recurrence too, if `stock`, an empty layer of transformers, keeps such."""
    states = next((cls for cls in type(stock).__mro__ if cls.__name__ == "LinearAttentionLayer"), None)
    if states is None:
        return ours
    kind: Any = type(ours)
    both = _empty(kind, states)
    both.__dict__.update({**vars(stock), **vars(ours)})
    return both


def _both(keys: Any, states: Any) -> Any:
    """A layer of both kinds: what is done to the rows of its keys is done to those of its states."""
    if (keys, states) not in _MADE:
        _MADE[keys, states] = _make(keys, states)
    return _MADE[keys, states]


def _make(keys: Any, states: Any) -> Any:

    def lazy_initialization(self: Any, *args: Any, **kwargs: Any) -> None:
        (keys if args else states).lazy_initialization(self, *args, **kwargs)

    def reset(self: Any) -> None:
        if hasattr(self, "conv_states"):  # else it is being made
            states.reset(self)
        keys.reset(self)

    def of_both(name: str, f: Callable[[Tensor, Any], Tensor]) -> Callable[..., None]:
        def change(self: Any, rows: Any) -> None:
            getattr(keys, name)(self, rows)
            for held in (self.conv_states, self.recurrent_states):
                held.update({at: f(state, rows) for at, state in held.items() if isinstance(state, Tensor)})

        return change

    def nbytes(self: Any) -> int:
        held = (*self.conv_states.values(), *self.recurrent_states.values())
        return int(keys.nbytes(self)) + sum(state.nbytes for state in held if isinstance(state, Tensor))

    def __reduce_ex__(self: Any, protocol: int) -> tuple[Any, ...]:
        return _empty, (keys, states), self.__dict__  # pickle cannot find a class made by a function

    methods = {
        "__reduce_ex__": __reduce_ex__,
        "lazy_initialization": lazy_initialization,
        "reset": reset,
        "reorder_cache": of_both("reorder_cache", lambda x, rows: x.index_select(0, rows.to(x.device))),
        "batch_repeat_interleave": of_both("batch_repeat_interleave", lambda x, n: x.repeat_interleave(n, dim=0)),
        "batch_select_indices": of_both("batch_select_indices", lambda x, rows: x[rows.to(x.device)]),
        "nbytes": nbytes,
    }
    return type(f"{keys.__name__}BesideStates", (keys, states), methods)


def _empty(keys: Any, states: Any) -> UnrotatedLayer:
    made: UnrotatedLayer = object.__new__(_both(keys, states))
    return made
