"""Which hooks are in place, and what other code has put over or under them."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from typing import Any, NamedTuple

from ..upstream.signatures import closed_over
from . import startup


class HookState(NamedTuple):
    """One hook: its place, whether calls reach it, and the modules of what is around it.

    Attributes:
        place: `Class.method`.
        reached: Whether a call gets to it; None where the class is not imported.
        over: The module of what has been put over it, or in its place; "" where it is called first.
        under: The module of what it calls, where that is not the stock method; "" where it is.
    """

    place: str
    reached: bool | None
    over: str
    under: str


def hook_states() -> Iterator[HookState]:
    """The state of each hook in transformers."""
    for module, owner, name in startup.HOOKS:
        place = f"{owner}.{name}"
        cls = getattr(sys.modules.get(module), owner, None)
        stock, wrap = startup._made.get((cls, name), (None, None))
        if cls is None or wrap is None:
            yield HookState(place, None if cls is None else False, "", "")
            continue
        now = getattr(cls, name)
        home = _module_of(stock)
        yield HookState(
            place,
            now is wrap or any(one is wrap for one in closed_over(now)),
            "" if now is wrap or now is stock else _module_of(now),
            "" if home.partition(".")[0] == module.partition(".")[0] else home,
        )


def foreign_functions() -> Iterator[tuple[str, str]]:
    """The attention functions that neither transformers nor hf_longctx has registered, with their modules."""
    registry: Any = getattr(sys.modules.get(startup.MODELS), "ALL_ATTENTION_FUNCTIONS", None)
    for name in registry or ():
        home = _module_of(registry[name])
        if home.partition(".")[0] not in ("transformers", "hf_longctx"):
            yield name, home


def _module_of(function: Any) -> str:
    """Where its code is: `functools.wraps` gives a wrap the `__module__` of what it wraps."""
    while (home := _space_of(function)).startswith("torch.") and hasattr(function, "__wrapped__"):
        function = function.__wrapped__  # `torch.compiler.disable` says nothing of who it was
    return home


def _space_of(function: Any) -> str:
    space = getattr(function, "__globals__", None)
    return str(space["__name__"] if space else getattr(function, "__module__", ""))
