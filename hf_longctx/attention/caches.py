"""Un-rotated layers in the place of a stock cache's empty ones."""

from __future__ import annotations

from typing import Any

from torch import nn
from transformers.cache_utils import Cache

from ..cache.base import UnrotatedLayer
from ..cache.stock import is_plain, owner_of
from .state import DecidesPositions, DecoderState


def adopt(method: DecidesPositions, cache: Cache, module: nn.Module) -> UnrotatedLayer:
    """The un-rotated layer of `cache` for this module, put in place of an empty `DynamicLayer` where needed."""
    index: int = module.layer_idx  # type: ignore[assignment]
    if getattr(cache, "layer_class_to_replicate", None) is not None:
        while len(cache.layers) <= index:
            cache.layers.append(cache.layer_class_to_replicate())
    layer: Any = cache.layers[index] if isinstance(cache, Cache) else cache
    owner = owner_of(layer)
    if owner is not None:
        if owner != method:
            raise ValueError(f"this cache was written under {owner!r} and cannot be read under {method!r}.")
        return layer
    if not is_plain(layer):
        raise ValueError(
            f"{type(layer).__name__}: {method.name} keeps its own cache and can replace an empty DynamicCache "
            f"only. Leave the cache and cache_implementation out."
        )
    if layer.get_seq_length():
        raise ValueError(
            f"this cache holds {layer.get_seq_length()} rotated keys of a model without {method.name}: they cannot be "
            f"read at other positions. Start with a new cache."
        )
    made = cache.layers[index] = method.cache_layer(module)
    return made


def adopt_all(state: DecoderState, cache: Cache) -> list[UnrotatedLayer]:
    """The un-rotated layers of `cache` for every patched layer of a decoder."""
    return [adopt(state.method, cache, module) for module in state.layers]
