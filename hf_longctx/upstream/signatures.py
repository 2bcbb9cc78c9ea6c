"""Forwards under decorators: those that transformers renames their arguments with, and those of other code."""

from __future__ import annotations

import inspect
import types
from collections.abc import Callable, Iterator
from functools import cache
from typing import Any

RENAMING = "transformers.utils.deprecation"


def renamed(function: Callable[..., Any]) -> Callable[..., Any]:
    """`function` without transformers' `deprecate_kwarg`: for callers that use the arguments' new names.

    Decorators of other code stay.
    """
    while getattr(function, "__globals__", {}).get("__name__") == RENAMING and hasattr(function, "__wrapped__"):
        function = function.__wrapped__
    return function


def closed_over(function: Callable[..., Any]) -> Iterator[types.FunctionType]:
    """`function`, and the functions that it closes over, as a decorator does over the one that it is put on."""
    found: dict[int, types.FunctionType] = {}
    waiting = [renamed(function)]
    while waiting:
        one = waiting.pop()
        if isinstance(one, types.FunctionType) and id(one) not in found:
            found[id(one)] = one
            waiting += [content for cell in one.__closure__ or () if callable(content := content_of(cell))]
    yield from found.values()


def content_of(cell: Any) -> Any:
    """What a cell of a closure holds; None while it is empty."""
    try:
        return cell.cell_contents
    except ValueError:
        return None


@cache
def names_in(function: Callable[..., Any]) -> frozenset[str]:
    """The names of globals and attributes in a function's code, and in that of functions which it closes over."""
    return frozenset(name for one in closed_over(function) for name in one.__code__.co_names)


@cache
def parameters(function: Callable[..., Any]) -> dict[str, inspect.Parameter]:
    """The arguments of a function by their names."""
    return dict(inspect.signature(renamed(function)).parameters)
