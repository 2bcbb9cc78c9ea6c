"""A forward under the decorators that transformers renames its arguments with."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

RENAMING = "transformers.utils.deprecation"


def renamed(function: Callable[..., Any]) -> Callable[..., Any]:
    """`function` without transformers' `deprecate_kwarg`: for callers that use the arguments' new names.

    Decorators of anybody else stay.
    """
    while getattr(function, "__globals__", {}).get("__name__") == RENAMING and hasattr(function, "__wrapped__"):
        function = function.__wrapped__
    return function
