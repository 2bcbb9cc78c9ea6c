"""What `edit` can work on, and the reasons for what it cannot: all of it is checked before anything is changed."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor
from transformers import Cache
from transformers.cache_utils import DynamicLayer, DynamicSlidingWindowLayer

from ..anatomy import layer_type
from ..attention.parity import check_rotary_function
from ..attention.positions import STATE, rotary_function, stock_class
from ..rope.parameters import moving_types
from .layers import BoundedLayer, GrowingLayer, UnrotatedLayer
from .workspace import in_order

_KINDS = (DynamicLayer, DynamicSlidingWindowLayer, GrowingLayer, BoundedLayer)
_ANEW = "Read the new text into a new cache instead."


def ids_of(given: Any, name: str, tower: Any) -> Tensor:
    """Token ids of one text as a 1-D tensor on the CPU."""
    try:
        ids = torch.as_tensor(given).cpu()
    except (TypeError, ValueError, RuntimeError) as error:
        raise ValueError(
            f"{name}={type(given).__name__}: expected token ids, a list or a tensor of whole numbers ({error})."
        ) from error
    if ids.ndim == 2 and len(ids) > 1:
        raise ValueError(
            f"{name} has {len(ids)} rows: a cache is edited for one text at a time. Edit each row's own cache."
        )
    ids = ids[0] if ids.ndim == 2 else ids
    if ids.ndim != 1 or not len(ids) or ids.is_floating_point() or ids.is_complex() or ids.dtype == torch.bool:
        raise ValueError(
            f"{name} of shape {tuple(ids.shape)} and {ids.dtype}: expected at least one token id, as a list, a 1-D "
            f"tensor or one row."
        )
    size = getattr(tower.config, "vocab_size", None)
    low, high = int(ids.min()), int(ids.max())
    if low < 0 or (size is not None and high >= size):
        raise ValueError(
            f"{name} has the token id {low if low < 0 else high}, and the model's go from 0 to {size}, exclusive. Were "
            f"they made by its own tokenizer?"
        )
    return ids.long()


def check_model(tower: Any) -> None:
    """ValueError for models whose keys cannot be moved."""
    parameters = getattr(tower.config, "rope_parameters", None)
    moving = moving_types(parameters)
    if moving:
        raise ValueError(
            f"rope_type={moving[0]!r} changes its frequencies with the length read, so cached keys were rotated by "
            f"other ones than an edited text's would be. {_ANEW}"
        )
    entries = [e for e in (parameters, *(parameters or {}).values()) if isinstance(e, dict)]
    if any("mrope_section" in entry for entry in entries):
        raise ValueError(
            f"{type(tower).__name__}: its tokens have several positions each (mrope), and an edit moves one. {_ANEW}"
        )


def check_cache(tower: Any, modules: Sequence[Any], cache: Any, n_old: int) -> int:
    """How many of the `n_old` tokens the cache holds; ValueError for caches that cannot be edited."""
    if not isinstance(cache, Cache):
        raise ValueError(f"{type(cache).__name__}: expected the Cache (past_key_values) that the model has filled.")
    if getattr(cache, "offloading", False):
        raise ValueError(f"an offloaded cache cannot be edited: its layers are elsewhere. {_ANEW}")
    layers = getattr(cache, "layers", None)
    other = next((layer for layer in layers or () if type(layer) not in _KINDS), None)
    if layers is None or other is not None:
        raise ValueError(
            f"{type(cache if layers is None else other).__name__}: only dynamic caches can be edited, not static, "
            f"quantised or recurrent ones. {_ANEW}"
        )
    if sorted(int(module.layer_idx) for module in modules) != list(range(len(layers))):
        raise ValueError(
            f"the cache has {len(layers)} layers and {type(tower).__name__} {len(modules)} that attend: it is another "
            f"model's, or empty, or layers share keys. Give the cache that this model has filled."
        )
    lengths = {_check_layer(module, layers[int(module.layer_idx)]) for module in modules}
    if len(lengths) > 1:
        raise ValueError(f"the layers of this cache hold {sorted(lengths)} tokens: a forward was interrupted. {_ANEW}")
    length = lengths.pop()
    if length not in (n_old, n_old - 1):
        raise ValueError(
            f"the cache holds {length} tokens and old_ids has {n_old}: expected the ids that it was filled with, or "
            f"those and the one that generate wrote last."
        )
    return length


def _check_layer(module: Any, layer: Any) -> int:
    """The number of tokens in one layer."""
    if not layer.is_initialized or layer.keys.ndim != 4:
        raise ValueError("this cache is empty: there is nothing to edit. Read a text into it first.")
    if layer.keys.shape[0] != 1:
        raise ValueError(
            f"the cache has {layer.keys.shape[0]} rows: a cache is edited for one text at a time. Read each row into "
            f"its own cache."
        )
    method = vars(module)[STATE].method if STATE in vars(module) else None
    owner = layer.owner if isinstance(layer, UnrotatedLayer) else None
    if owner != method:
        raise ValueError(
            f"this cache was written under {owner or 'no method'!r}, and the model has {method!r}. {_ANEW}"
        )
    if isinstance(layer, UnrotatedLayer):
        _check_unrotated(layer)
    else:
        kind = stock_class(module)
        check_rotary_function(kind, rotary_function(kind))
        if layer_type(module) == "chunked_attention":
            raise ValueError(
                f"{kind.__name__}: an edit moves tokens across the chunks that its layers attend in. {_ANEW}"
            )
    return int(layer.get_seq_length())


def _check_unrotated(layer: UnrotatedLayer) -> None:
    kept = in_order(layer)
    if len(kept) < layer.seen:
        raise ValueError(
            f"this cache has read {layer.seen} tokens under {layer.owner!r} and keeps {len(kept)}: what is gone cannot "
            f"be read by what is new. {_ANEW}"
        )
    if not torch.equal(kept.pos[0], torch.arange(len(kept), device=kept.pos.device)):
        raise ValueError(f"the tokens of this cache do not stand at 0, 1, 2, ... (padding, or a stream). {_ANEW}")
