"""Copies of what reads through a model: deep ones have all of its own state, and share the model."""

from __future__ import annotations

import copy
from typing import Any, TypeVar

T = TypeVar("T")


def deep_copy(thing: T, memo: dict[int, Any], *shared: Any) -> T:
    """For `__deepcopy__`: a copy of `thing`, in which `shared` are what they are in it.

    What was copied already, in the same `copy.deepcopy` of something larger, is taken from there.
    """
    for part in shared:
        memo.setdefault(id(part), part)
    twin = type(thing).__new__(type(thing))
    memo[id(thing)] = twin
    for name, value in vars(thing).items():
        setattr(twin, name, copy.deepcopy(value, memo))
    return twin


def shallow_copy(thing: T) -> T:
    """For `__copy__` of what cannot be pickled, which copy.copy would ask for."""
    twin = type(thing).__new__(type(thing))
    vars(twin).update(vars(thing))
    return twin
