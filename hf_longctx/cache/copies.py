"""Copies of objects that read through a model: they share the model and copy everything else."""

from __future__ import annotations

import copy
from typing import Any, TypeVar

T = TypeVar("T")


def deep_copy(thing: T, memo: dict[int, Any], *shared: Any) -> T:
    """For `__deepcopy__`: a copy of `thing` that shares the objects `shared` with it.

    Parts that the same `copy.deepcopy` of something larger has copied already are taken from there.
    """
    for part in shared:
        memo.setdefault(id(part), part)
    twin = type(thing).__new__(type(thing))
    memo[id(thing)] = twin
    for name, value in vars(thing).items():
        setattr(twin, name, copy.deepcopy(value, memo))
    return twin


def shallow_copy(thing: T) -> T:
    """For `__copy__` of objects that cannot be pickled, which copy.copy would need."""
    twin = type(thing).__new__(type(thing))
    vars(twin).update(vars(thing))
    return twin
