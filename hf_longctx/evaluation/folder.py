"""What the modules of a folder declare: one more file in it is one more task or benchmark, with no table to edit."""

from __future__ import annotations

from functools import cache
from importlib import import_module
from pkgutil import iter_modules
from types import ModuleType
from typing import Any


def modules(package: ModuleType) -> dict[str, ModuleType]:
    """The modules of a package by name, sorted. Its `__path__` may have got folders of other code."""
    return _modules(package.__name__, tuple(package.__path__))


def declared(package: ModuleType, name: str) -> dict[str, Any]:
    """The tables called `name` of all modules of a package, put together.

    Raises:
        ValueError: Two modules declare the same key.
    """
    found: dict[str, Any] = {}
    for module in modules(package).values():
        table = getattr(module, name, {})
        if taken := found.keys() & table.keys():
            raise ValueError(f"{module.__name__}: {', '.join(sorted(taken))} is already in {name} of another file.")
        found |= table
    return found


@cache
def _modules(package: str, path: tuple[str, ...]) -> dict[str, ModuleType]:
    return {name: import_module(f"{package}.{name}") for name in sorted(info.name for info in iter_modules(path))}
