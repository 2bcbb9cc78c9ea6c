"""Questions to any cache or layer: hf_longctx's own answer by themselves, this module does for transformers'."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from torch import Tensor
from transformers.cache_utils import CacheLayerMixin, DynamicLayer, DynamicSlidingWindowLayer


def owner_of(layer: Any) -> Any:
    """The method that writes a layer of un-rotated keys; None for layers of rotated ones."""
    return getattr(layer, "owner", None)


def unrotated_layers(cache: Any) -> list[Any]:
    """The layers of a cache that hold un-rotated keys."""
    return [layer for layer in cache.layers if owner_of(layer) is not None]


def has_layer(cache: Any, index: int) -> bool:
    """Does the cache keep anything for this layer? Not for one that reads another layer's keys."""
    layers = getattr(cache, "layers", None)
    return layers is None or (index < len(layers) and isinstance(layers[index], CacheLayerMixin))


def is_plain(layer: Any) -> bool:
    """Is it transformers' own layer that keeps every key as it is?"""
    return type(layer) is DynamicLayer


def is_replaceable(layer: Any) -> bool:
    """Is it one of transformers that keeps every key as it is, with or without the states of a recurrence beside?"""
    both = isinstance(layer, DynamicLayer) and not layer.is_sliding and hasattr(layer, "recurrent_states")
    return both or is_plain(layer)


def is_window(layer: Any) -> bool:
    """Is it transformers' own layer of a sliding window, which drops keys?"""
    return isinstance(layer, DynamicSlidingWindowLayer)


def is_bounded(layer: Any) -> bool:
    """Does the layer keep its size however much is read? Windows and recurrent states do."""
    told: bool | None = getattr(layer, "bounded", None)
    return (not isinstance(layer, DynamicLayer) or layer.is_sliding) if told is None else told


def is_editable(layer: Any) -> bool:
    """Can the text that the layer holds be edited in place?"""
    if hasattr(layer, "recurrent_states"):  # of which a token cannot be taken out again
        return False
    return type(layer) in (DynamicLayer, DynamicSlidingWindowLayer) or hasattr(layer, "editable_view")


def has_fixed_buffers(cache: Any) -> bool:
    """Do all layers keep their tensors' addresses while single tokens are read?"""
    layers = getattr(cache, "layers", ())
    return bool(layers) and all(getattr(layer, "fixed_buffers", False) for layer in layers)


def shares_prefix(cache: Any) -> bool:
    """Does it hold the suffixes of texts with a shared prefix? Such a cache is only good for that prefix's model."""
    return getattr(cache, "shares_prefix", False)


def nbytes(cache: Any) -> int:
    """Bytes of all that a cache keeps: keys, values, positions, states, and whatever else its layers hold.

    Positions that layers share count in each of them, as they may part.
    """
    return sum(
        layer.nbytes() if hasattr(layer, "nbytes") else sum(tensor.nbytes for tensor in _tensors(vars(layer)))
        for layer in cache.layers
    )


def _tensors(values: dict[Any, Any]) -> Iterator[Tensor]:
    for value in values.values():
        if isinstance(value, Tensor):
            yield value
        elif isinstance(value, dict):
            yield from _tensors(value)
