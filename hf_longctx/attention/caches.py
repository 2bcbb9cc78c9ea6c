"""Un-rotated layers in the place of a stock cache's empty ones."""

from __future__ import annotations

from torch import nn
from transformers.cache_utils import Cache, DynamicLayer

from ..cache.layers import UnrotatedLayer
from .state import DecidesPositions, DecoderState


def adopt(method: DecidesPositions, cache: Cache, module: nn.Module) -> UnrotatedLayer:
    """The un-rotated layer of `cache` for this module, put in place of an empty `DynamicLayer` where needed."""
    index: int = module.layer_idx  # type: ignore[assignment]
    if getattr(cache, "layer_class_to_replicate", None) is not None:
        while len(cache.layers) <= index:
            cache.layers.append(cache.layer_class_to_replicate())
    layer = cache.layers[index] if isinstance(cache, Cache) else cache
    if isinstance(layer, UnrotatedLayer):
        if layer.owner != method:
            raise ValueError(f"this cache was written under {layer.owner!r} and cannot be read under {method!r}.")
        return layer
    if type(layer) is not DynamicLayer:
        raise ValueError(
            f"{type(layer).__name__}: {method.name} keeps its own cache and can replace an empty DynamicCache "
            f"only. Leave the cache and cache_implementation out."
        )
    if layer.get_seq_length():
        raise ValueError(
            f"this cache holds {layer.get_seq_length()} rotated keys of a model without {method.name}: they cannot be "
            f"read at other positions. Start with a new cache."
        )
    cache.layers[index] = method.cache_layer(module)
    return cache.layers[index]


def adopt_all(state: DecoderState, cache: Cache) -> list[UnrotatedLayer]:
    """The un-rotated layers of `cache` for every patched layer of a decoder."""
    return [adopt(state.method, cache, module) for module in state.layers]
