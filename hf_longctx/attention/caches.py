"""Un-rotated layers in the place of a stock cache's empty ones."""

from __future__ import annotations

from typing import Any

from torch import Tensor, nn

from ..cache.base import UnrotatedLayer
from ..cache.beside import beside
from ..cache.stock import has_layer, is_replaceable, owner_of
from .state import DecoderState, known_of


def adopt(state: DecoderState, cache: Any, module: nn.Module, index: int) -> UnrotatedLayer | None:
    """The un-rotated layer of `cache` with this index, put in place of an empty `DynamicLayer` where needed.

    None where the cache keeps nothing for it: a layer that reads another one's keys. A layer that was made before the
    model was known to change what its cache returns is made again.
    """
    method = state.method
    if getattr(cache, "layer_class_to_replicate", None) is not None:
        while len(cache.layers) <= index:
            cache.layers.append(cache.layer_class_to_replicate())
    if not has_layer(cache, index):
        return None
    layer: Any = cache.layers[index] if hasattr(cache, "layers") else cache
    owner = owner_of(layer)
    if owner is not None:
        if owner is not method and _differs(owner, method):
            raise ValueError(f"this cache was written under {owner!r} and cannot be read under {method!r}.")
        if layer.is_initialized or not layer.adopted or layer.joined == state.joined:
            return layer
    elif not is_replaceable(layer):
        raise ValueError(
            f"{type(layer).__name__}: {method.name} keeps its own cache and can replace an empty DynamicCache "
            f"only. Leave the cache and cache_implementation out."
        )
    if layer.get_seq_length():
        raise ValueError(
            f"this cache holds {layer.get_seq_length()} rotated keys of a model without {method.name}: they cannot be "
            f"read at other positions. Start with a new cache."
        )
    made = cache.layers[index] = beside(method.cache_layer(module), layer)
    made.adopted, made.joined = True, state.joined
    return made


def _differs(owner: Any, method: Any) -> bool:
    """Are two methods different? By field, since a compiler that takes sizes for dynamic compares no whole methods."""
    if type(owner) is not type(method):
        return True
    return any(getattr(owner, field) != getattr(method, field) for field in method.__dataclass_fields__)


def adopt_all(state: DecoderState, cache: Any) -> list[UnrotatedLayer]:
    """The un-rotated layers of `cache` for the patched layers of a decoder, as far as the cache has layers yet."""
    held = getattr(cache, "layers", None)
    indices: dict[int, nn.Module] = {}
    for module in state.layers:
        known = known_of(module).values()
        if any(found.elsewhere for found in known):  # it is in several layers, which may be any of the cache
            places = [i for i, layer in enumerate(held or ()) if is_replaceable(layer) or owner_of(layer) is not None]
            indices |= dict.fromkeys(places, module)
        elif all(found.lends for found in known):
            indices[module.layer_idx] = module  # type: ignore[index]
    adopted = (adopt(state, cache, indices[i], i) for i in sorted(indices) if held is None or i < len(held))
    return [layer for layer in adopted if layer is not None]


class Adopting:
    """A cache in which a layer's index is known only when the layer writes it: its weights are in several layers."""

    def __init__(self, cache: Any, module: nn.Module, call: Any) -> None:
        self.cache, self.module, self.call = cache, module, call

    def __getattr__(self, name: str) -> Any:
        return getattr(self.cache, name)

    def update(self, keys: Tensor, values: Tensor, index: int, *args: Any, **kwargs: Any) -> tuple[Tensor, Tensor]:
        """Write the layer of this index, which is then one of un-rotated keys."""
        self.call.open(adopt(self.call.decoder, self.cache, self.module, index))
        return self.cache.update(keys, values, index, *args, **kwargs)
