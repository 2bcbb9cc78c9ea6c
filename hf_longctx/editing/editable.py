"""The models, caches and ids that `edit` takes, and the reasons for others: checked before anything is changed."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor
from transformers import Cache
from transformers.cache_utils import CacheLayerMixin, DynamicLayer

from ..anatomy import layer_types
from ..attention.state import STATE
from ..attention.subclass import stock_class
from ..cache import KeyValues, UnrotatedLayer
from ..cache.stock import is_editable, is_window, owner_of
from ..ops.checked import layer_tolerance
from ..rope.parameters import moving_types
from ..upstream.caches import given_cache
from .difference import Ids
from .workspace import first_kept

_READ_AGAIN = "Read the new text into a new cache instead."
SAMPLE = 8  # tokens that are looked up in the cache


def ids_of(given: Any, name: str, decoder: Any) -> Ids:
    """Token ids of one text as a 1-D array, int64. A view, where they are that already: not to be written to."""
    ids = _plain_list(given)
    if ids is None:
        ids = _as_tensor(given, name).numpy().astype(np.int64, copy=False)
    check_vocabulary(ids, name, decoder)
    return ids


def _plain_list(given: Any) -> Ids | None:
    """A list of whole numbers as an array, in a fifth of the time that torch takes; None for anything else."""
    if not isinstance(given, (list, tuple)) or not given or type(given[0]) is not int:
        return None
    try:
        ids = np.asarray(given)
    except (TypeError, ValueError, OverflowError, RuntimeError):  # torch says what is wrong
        return None
    return ids if ids.ndim == 1 and ids.dtype == np.int64 else None


def _as_tensor(given: Any, name: str) -> Tensor:
    """Token ids of one text as a 1-D tensor on the CPU."""
    try:
        ids = torch.as_tensor(given).cpu()
    except (TypeError, ValueError, RuntimeError) as error:
        raise ValueError(
            f"{name}={type(given).__name__}: expected token ids, a list or a tensor of whole numbers ({error})."
        ) from error
    if ids.ndim == 2 and len(ids) > 1:
        raise ValueError(
            f"{name} has {len(ids)} rows: edit takes one text. Use edit_batch, which takes a list of rows."
        )
    ids = ids[0] if ids.ndim == 2 else ids
    if ids.ndim != 1 or not len(ids) or ids.is_floating_point() or ids.is_complex() or ids.dtype == torch.bool:
        raise ValueError(
            f"{name} of shape {tuple(ids.shape)} and {ids.dtype}: expected at least one token id, as a list, a 1-D "
            f"tensor or one row."
        )
    return ids


def check_vocabulary(ids: Ids | Tensor, name: str, decoder: Any) -> None:
    """ValueError for token ids that the model has no embedding of, before they fail on a GPU."""
    size = getattr(decoder.config, "vocab_size", None)
    low, high = int(ids.min()), int(ids.max())
    if low < 0 or (size is not None and high >= size):
        raise ValueError(
            f"{name} has the token id {low if low < 0 else high}, and the model's go from 0 to {size}, exclusive. Were "
            f"they made by its own tokenizer?"
        )


def check_model(decoder: Any) -> None:
    """ValueError for models whose keys cannot be moved."""
    parameters = getattr(decoder.config, "rope_parameters", None)
    moving = moving_types(parameters)
    if moving:
        raise ValueError(
            f"rope_type={moving[0]!r} changes its frequencies with the length read, so cached keys were rotated by "
            f"other ones than an edited text's would be. {_READ_AGAIN}"
        )
    entries = [e for e in (parameters, *(parameters or {}).values()) if isinstance(e, dict)]
    if any("mrope_section" in entry for entry in entries):
        raise ValueError(
            f"{type(decoder).__name__}: its tokens have several positions each (mrope), and an edit moves one. "
            f"{_READ_AGAIN}"
        )


def check_cache(decoder: Any, modules: Sequence[Any], cache: Any, n_old: int, rows: int = 1) -> int:
    """How many of the `n_old` tokens the cache holds; ValueError for caches that cannot be edited.

    With several rows, `n_old` is the longest one's: shorter ones are padded on the left.
    """
    if not isinstance(cache, Cache):
        raise ValueError(f"{type(cache).__name__}: expected the Cache that the model has filled.")
    if getattr(cache, "offloading", False):
        raise ValueError(f"an offloaded cache cannot be edited: its layers are elsewhere. {_READ_AGAIN}")
    check_kinds(cache)
    layers = cache.layers
    if sorted(int(module.layer_idx) for module in modules) != list(range(len(layers))):
        raise ValueError(
            f"the cache has {len(layers)} layers and {type(decoder).__name__} {len(modules)} that attend: it is "
            f"another model's, or empty, or layers share keys. Give the cache that this model has filled."
        )
    lengths = {
        _check_layer(module, layers[int(module.layer_idx)], rows, kind)
        for module, kind in zip(modules, layer_types(modules), strict=True)
    }
    if len(lengths) > 1:
        raise ValueError(
            f"the layers of this cache hold {sorted(lengths)} tokens: a forward was interrupted. {_READ_AGAIN}"
        )
    length = lengths.pop()
    if length not in (n_old, n_old - 1):
        raise ValueError(
            f"the cache holds {length} tokens and old_ids has {n_old}: expected the ids that it was filled with, or "
            f"those and the one that generate wrote last."
        )
    return length


def check_kinds(cache: Any) -> None:
    """ValueError unless all layers of a cache are of a kind that can be edited."""
    layers = getattr(cache, "layers", None)
    other = next((layer for layer in layers or () if not is_editable(layer)), None)
    if layers is None or other is not None:
        raise ValueError(
            f"{type(cache if layers is None else other).__name__}: only dynamic caches can be edited, not static, "
            f"quantised or recurrent ones. {_READ_AGAIN}"
        )


def _check_layer(module: Any, layer: Any, rows: int, kind_of_layer: str) -> int:
    """The number of tokens in one layer."""
    if not layer.is_initialized or layer.keys.ndim != 4:
        raise ValueError("this cache is empty: there is nothing to edit. Read a text into it first.")
    if layer.keys.shape[0] != rows:
        raise ValueError(
            f"the cache has {layer.keys.shape[0]} rows and old_ids {rows}: "
            + ("edit takes one text. Use edit_batch." if rows == 1 else "expected a list with the ids of every row.")
        )
    method = vars(module)[STATE].method if STATE in vars(module) else None
    owner = owner_of(layer)
    if owner != method:
        raise ValueError(
            f"this cache was written under {owner or 'no method'!r}, and the model has {method!r}. {_READ_AGAIN}"
        )
    if owner is not None:
        _check_unrotated(layer)
    elif kind_of_layer == "chunked_attention":
        raise ValueError(
            f"{stock_class(module).__name__}: an edit moves tokens across the chunks that its layers attend in. "
            f"{_READ_AGAIN}"
        )
    return int(layer.get_seq_length())


def _check_unrotated(layer: Any) -> None:
    kept = layer.editable_view()
    if len(kept) < layer.seen:
        raise ValueError(
            f"this cache has read {layer.seen} tokens under {layer.owner!r} and keeps {len(kept)}: new tokens cannot "
            f"attend to evicted keys. {_READ_AGAIN}"
        )
    if not torch.equal(kept.pos[0], torch.arange(len(kept), device=kept.pos.device)):
        raise ValueError(f"the tokens of this cache do not stand at 0, 1, 2, ... (padding, or a stream). {_READ_AGAIN}")


def check_tokens(
    decoder: Any, modules: Sequence[Any], cache: Cache, rows: Sequence[Ids], columns: Sequence[int] = (0,)
) -> None:
    """ValueError unless the first layer's keys of a few tokens are those in the cache.

    They follow from the token and its position alone, so other tokens, another model and other rotary settings show.

    Args:
        decoder: The model's decoder.
        modules: Its attention layers.
        cache: The cache of the text.
        rows: The ids that the cache holds, of every row.
        columns: Where in the cache each row begins; before that is padding.
    """
    first = next(i for i, module in enumerate(modules) if int(module.layer_idx) == 0)
    layer: Any = cache.layers[0]
    start = first_kept(layer) if is_window(layer) else 0
    if decoder.device.type == "meta":  # an interrupted forward leaves the weights offloaded
        return
    used = [r for r, ids in enumerate(rows) if len(ids) > start]
    if not used:
        return
    # one row is looked at once in each place; rows of different lengths in as many places as the longest one
    n = min(SAMPLE, max(len(rows[r]) - start for r in used))
    looked = [np.linspace(start, len(rows[r]) - 1, n, dtype=np.int64) for r in used]
    pos = torch.from_numpy(np.stack(looked))
    ids = torch.from_numpy(np.stack([rows[r][at] for r, at in zip(used, looked, strict=True)]))
    order = sorted(modules, key=lambda module: int(module.layer_idx))
    found = keys_of(decoder, ids, pos, [_probe_of(cache.layers[int(module.layer_idx)]) for module in order])
    kept = layer.keys if owner_of(layer) is None else layer.editable_view().k
    if found.dtype != kept.dtype:
        raise ValueError(
            f"this cache holds keys in {kept.dtype}, and the model makes them in {found.dtype}: expected the cache "
            f"that this model has filled, in the dtype (and under the autocast) it has now. {_READ_AGAIN}"
        )
    found = found.float()
    at = (pos - start + torch.tensor([columns[r] for r in used])[:, None]).to(kept.device)
    kept = kept[torch.tensor(used, device=kept.device)[:, None], :, at].transpose(1, 2).to(found.device)
    if found.shape == kept.shape:
        size = (1, 2, 3)
        apart = (found - kept.float()).square().sum(size)
        off = float((apart / found.square().sum(size).clamp(min=1e-30)).sqrt().amax())  # padding may be embedded as 0
    else:
        off = float("inf")
    if not off <= layer_tolerance(kept.dtype):
        raise not_these(modules[first], n, off)


def keys_of(decoder: Any, ids: Tensor, pos: Tensor, probes: Sequence[CacheLayerMixin] | int) -> Tensor:
    """The first layer's keys of tokens at positions; `probes` are empty cache layers, or how many stock ones."""
    layers = [_StockProbe(False) for _ in range(probes)] if isinstance(probes, int) else list(probes)
    device = decoder.device
    try:
        decoder(
            input_ids=ids.to(device),
            position_ids=pos.to(device),
            **given_cache(decoder, Cache(layers=layers)),
            use_cache=True,
        )
    except _Seen as seen:
        return seen.keys
    raise caches_nothing(decoder)


def not_these(module: Any, n: int, off: float) -> ValueError:
    """The error for a cache that does not hold the old text: keys of `n` tokens are off by `off`."""
    return ValueError(
        f"this cache does not hold old_ids as {type(module).__name__} reads them (keys of {n} tokens looked up in it "
        f"are off by {off:.1e}): it is of other tokens, of another model, or was filled with other rotary settings. "
        f"{_READ_AGAIN}"
    )


def caches_nothing(decoder: Any) -> ValueError:
    """The error for a model whose forward left its cache alone."""
    return ValueError(
        f"{type(decoder).__name__}: it caches nothing in this state (gradient checkpointing in training mode?). Call "
        f"model.eval() first."
    )


class _Seen(Exception):
    def __init__(self, keys: Tensor) -> None:
        super().__init__("the keys that were looked for")
        self.keys = keys


class _StockProbe(DynamicLayer):
    """An empty layer that stops the forward when keys come."""

    def __init__(self, is_sliding: bool) -> None:
        super().__init__()
        self.is_sliding = is_sliding

    def update(self, key_states: Tensor, value_states: Tensor, *args: Any, **kwargs: Any) -> tuple[Tensor, Tensor]:
        raise _Seen(key_states)


class _UnrotatedProbe(UnrotatedLayer):
    def keep(self, new: KeyValues) -> KeyValues:
        raise _Seen(new.k)


def _probe_of(layer: Any) -> CacheLayerMixin:
    return _StockProbe(is_window(layer)) if owner_of(layer) is None else _UnrotatedProbe(layer.owner)
