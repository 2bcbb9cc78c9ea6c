"""A forward's cache, under every name that transformers has had for it.

transformers 5.24 renamed `past_key_values` to `cache` in every model; GPT-NeoX and its kin say `layer_past` inside,
state space models said `cache_params`. Code from the Hub keeps the name that it was written with, so a name is looked
up in a signature, and never concluded from a version.
"""

from __future__ import annotations

import dataclasses
import inspect
from collections.abc import Iterable, Mapping
from functools import lru_cache
from typing import Any

from torch import nn
from transformers import GenerationMixin
from transformers.cache_utils import Cache

from ..patch import unwrap

CACHE_NAMES = ("cache", "past_key_values", "layer_past", "cache_params")


def cache_in(kwargs: Mapping[str, Any], args: Iterable[Any] = ()) -> Any:
    """The cache among the arguments of a forward or of `generate`, or None."""
    named = (kwargs[name] for name in CACHE_NAMES if kwargs.get(name) is not None)
    found = next(named, None)
    return next((x for x in args if isinstance(x, Cache)), None) if found is None else found


def cache_out(output: Any) -> Any:
    """The cache that a model's output carries, or None."""
    held = vars(output)  # attributes of old names warn
    return next((held[name] for name in CACHE_NAMES if held.get(name) is not None), None)


def given_cache(called: Any, cache: Any) -> dict[str, Any]:
    """The keyword argument that hands `cache` to `called`: a model, a module, a function, or a class of outputs."""
    return {cache_name(called): cache}


def generate_cache(cache: Any) -> dict[str, Any]:
    """The keyword argument that hands `cache` to a model's `generate`."""
    return {_GENERATE: cache}


def without_cache(kwargs: Mapping[str, Any]) -> dict[str, Any]:
    """`kwargs` but for the cache, whatever its name."""
    return {name: value for name, value in kwargs.items() if name not in CACHE_NAMES}


def check_cache_kind(wanted: Any, own: Any, holder: str) -> None:
    """ValueError for a `cache_implementation` that a call asks for and does not get.

    One that stands in the model's own settings (`own`) is what a checkpoint is loaded with, and is passed over.
    """
    if wanted not in (None, "dynamic", own):
        raise ValueError(f"cache_implementation={wanted!r}: {holder} keeps a cache of its own. Leave it out.")


def cache_name(called: Any) -> str:
    """The name under which `called` takes a cache; where its signature has none, the one that transformers uses."""
    if isinstance(called, nn.Module):
        called = unwrap(called).forward
        called = getattr(called, "__func__", called)  # one entry for all models of a class
    elif not isinstance(called, type) and not inspect.isroutine(called):
        called = called.__call__  # what stands in for a model
    return taken_name(called) or _GENERATE


@lru_cache(maxsize=256)
def taken_name(function: Any) -> str | None:
    """The name under which a function's signature (or a dataclass) takes a cache, or None."""
    if dataclasses.is_dataclass(function):
        names: Any = {field.name for field in dataclasses.fields(function)}
    else:
        names = inspect.signature(function).parameters
    return next((name for name in CACHE_NAMES if name in names), None)


_GENERATE = taken_name(GenerationMixin.prepare_inputs_for_generation) or CACHE_NAMES[0]
