"""Several methods on one model as one row of the contract, and what the properties ask about a row."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from typing import Any

from hf_longctx import PositionFree
from tests.reference.model import by_brute_force


class Stack:
    """Methods that are applied in this order and undone last in, first out."""

    def __init__(self, *methods: Any) -> None:
        self.methods = methods

    def apply(self, model: Any) -> Undo:
        return Undo([method.apply(model) for method in self.methods])

    @contextmanager
    def on(self, model: Any) -> Iterator[Any]:
        with ExitStack() as stack:
            for method in self.methods:
                stack.enter_context(method.on(model))
            yield model


@dataclasses.dataclass
class Undo:
    """The patches of a `Stack`, with the `undo` of a `Patch`."""

    patches: list[Any]

    def undo(self) -> None:
        for patch in reversed(self.patches):
            patch.undo()


def parts(method: Any) -> list[Any]:
    """The methods of a row, in the order in which they are applied."""
    return list(method.methods) if isinstance(method, Stack) else [method]


def in_key(method: Any) -> list[Any]:
    """Those that a saved model carries in its `hf_longctx` entry; native ones are in its `rope_parameters`."""
    return [part for part in parts(method) if not part.native]


def native_of(method: Any) -> Stack:
    return Stack(*(part for part in parts(method) if part.native))


def decides_positions(method: Any) -> bool:
    """Does the row replace attention? What concerns our attention has no meaning for rows that do not."""
    return bool(in_key(method))


def is_identity(method: Any) -> bool:
    return not any(part.extends for part in parts(method))


@contextmanager
def as_published(model: Any, method: Any) -> Iterator[Any]:
    """Inside the block `model`, a stock model, runs the row by brute force.

    Native methods write the config; the frequencies that follow from it are computed by the reference.
    """
    (attention,) = in_key(method) or [PositionFree()]
    with native_of(method).on(model), by_brute_force(model, attention):
        yield model


def _giraffe(method: Any) -> dict[str, Any]:
    # every frequency turns once within so long a training, or is lowered by a factor of 1 - 1e-9
    settings = {"truncated": {"train_length": 10**9}, "power": {"exponent": 1e-9}}[method.basis]
    return {"scale": 1.0, **settings}


def _rope_scaling(method: Any) -> dict[str, Any]:
    ones = [1.0] * len(method.long_factor or ())
    return {"factor": 1.0, **({"short_factor": ones, "long_factor": ones} if ones else {})}


# of the methods that `tests/reference` has as their papers write them: settings at which they change nothing
IDENTITY: dict[str, Callable[[Any], dict[str, Any]]] = {
    "code_lookup": lambda method: {"n_local": 300},
    "giraffe": _giraffe,
    "infllm": lambda method: {"n_local": 300},
    "lm_infinite": lambda method: {"n_local": 300},
    "rope_scaling": _rope_scaling,
    "streaming_llm": lambda method: {"window": 300},
}


def has_reference(method: Any) -> bool:
    """Can the row be compared with its papers? `PositionFree`, which has none, only with the stock model."""
    return not is_identity(method) and all(part.name in IDENTITY for part in parts(method))


def identity_of(method: Any) -> Any:
    """The same row with settings at which its papers change nothing."""
    if isinstance(method, Stack):
        return Stack(*map(identity_of, method.methods))
    return dataclasses.replace(method, **IDENTITY[method.name](method))
