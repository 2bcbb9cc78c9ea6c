"""Which edits come from a CUDA graph, and the graph of each model, whose first result is checked."""

from __future__ import annotations

import logging
from collections.abc import Callable, Sequence
from typing import Any
from weakref import WeakKeyDictionary

import torch
from torch import Tensor
from transformers import Cache

from ...attention.rerotate import angles_of
from ...ops.available import TRITON
from ...ops.checked import layer_tolerance, relative_error
from ...ops.sealed import is_sealed
from ..parts import ModelParts
from ..placed import RowEdit, why_not_placed
from .recorded import SIZES, EditGraph

logger = logging.getLogger("hf_longctx")
ROUND = 4096  # columns; buffers are a multiple of it
KNOWN = ("torch.", "transformers.", "hf_longctx.")  # modules and hooks that do the same in every forward

Works = list[Any]  # layers in the making, of each attention module
_graphs: WeakKeyDictionary[Any, EditGraph] = WeakKeyDictionary()  # of each decoder
_without: WeakKeyDictionary[Any, str] = WeakKeyDictionary()  # decoders without a graph, and why
_edited: WeakKeyDictionary[Any, int] = WeakKeyDictionary()  # edits so far that a graph could have made


def from_graph(
    plain: Callable[[], tuple[Works, float]], parts: ModelParts, cache: Cache, row: RowEdit, wanted: bool | None
) -> tuple[Works, float]:
    """What `plain()` gives, from the model's graph if it has one: the layers, and the seconds that moving keys took.

    `plain` runs for a model's first edit, where there can be no graph, and to check a graph's first result.
    ValueError if a graph is `wanted` and there can be none, or the cache holds other tokens.
    """
    decoder = parts.decoder
    reason = _refused(parts, cache, row)
    if reason is not None and wanted:
        raise ValueError(f"compiled=True: this edit cannot come from a CUDA graph, as {reason}. Leave it out.")
    # recording takes as long as a few edits
    works = _replayed(parts, cache, row) if reason is None and (_pays(decoder) or wanted) else None
    if works is not None and is_checked(decoder):
        return works, 0.0
    truth = plain()
    if works is not None:
        _check(decoder, works, truth[0], row)
    return truth


def is_checked(decoder: Any) -> bool:
    """Has the graph of this decoder given what the plain path gives?"""
    graph = _graphs.get(decoder)
    return graph is not None and graph.checked


def forget(decoder: Any) -> None:
    """Free the graph and the buffers of a decoder."""
    for known in (_graphs, _edited, _without):
        known.pop(decoder, None)


def _refused(parts: ModelParts, cache: Cache, row: RowEdit) -> str | None:
    """The reason why this edit cannot come from a graph; None if it can."""
    decoder, modules, everything = parts
    reason = why_not_placed(decoder, modules, cache)
    if reason is not None:
        return reason
    layers: Any = cache.layers
    keys = layers[0].keys
    if not suits(keys):
        return f"its keys are {keys.dtype} on {keys.device}, not half precision on a GPU"
    shapes = {x.shape[1::2] for layer in layers for x in (layer.keys, layer.values)}
    if keys.shape[3] > 256 or keys.shape[3] % 8 or any(layer.keys.device != keys.device for layer in layers):
        return "its layers are on several devices, or of a head dim without a kernel"
    if len(shapes) > 1:
        return "its keys and values are of several shapes"
    own = [module._parameters for module in everything if module._parameters]
    if {p.device for weights in own for p in weights.values() if p is not None} - {keys.device}:
        return "its weights are not all on that GPU"
    foreign = next((cls for cls in set(map(type, everything)) if not cls.__module__.startswith(KNOWN)), None)
    if foreign is not None:
        return f"{foreign.__name__} is not part of a stock model, and may change what it does between edits"
    for module in everything:
        if not module._forward_hooks and not module._forward_pre_hooks:
            continue
        hooks = (*module._forward_hooks.values(), *module._forward_pre_hooks.values())
        if not all(str(getattr(hook, "__module__", "")).startswith(KNOWN) for hook in hooks):
            return "hooks of other code expect its forwards to run"
    more = any(getattr(modules[0], name, None) is not None for name in ("sinks", "attn_logit_softcapping"))
    if angles_of(decoder).per_layer_type or len({type(m) for m in modules}) > 1 or more:
        return "its layers rotate or attend in several ways"
    read = sum(map(len, row.read))
    if not 0 < read <= SIZES[-1] or not any(n for _, _, n in row.copies):
        return f"{read} tokens are to be read, and a graph reads 1 to {SIZES[-1]} after others"
    return "it is in train mode" if decoder.training else None


def suits(keys: Tensor) -> bool:
    """Is there a kernel for such keys? In tests, plain steps on a CPU stand in for it."""
    return TRITON and keys.is_cuda and keys.dtype in (torch.bfloat16, torch.float16)


def _pays(decoder: Any) -> bool:
    """From a model's second edit on, unless recording has failed."""
    _edited[decoder] = _edited.get(decoder, 0) + 1
    return _edited[decoder] > 1 and decoder not in _without


def _replayed(parts: ModelParts, cache: Cache, row: RowEdit) -> Works | None:
    """The layers in the making; None if the edit cannot be recorded; ValueError for other tokens."""
    decoder, modules, everything = parts
    graph = _graphs.get(decoder)
    layers: Any = cache.layers
    need = max(len(row.ids), layers[0].keys.shape[2]) + 1
    state = _state_of(everything, layers[0].keys)
    try:
        if graph is None or graph.columns < need or graph.state != state or is_sealed(graph.buffers):
            _graphs.pop(decoder, None)
            graph = None  # its buffers go before new ones are made
            graph = _graphs[decoder] = EditGraph(modules, layers[0].keys, -(-need // ROUND) * ROUND, state)
        return graph.run(decoder, modules, cache, row)
    except (RuntimeError, TypeError, NotImplementedError) as error:
        _give_up(decoder, f"{type(error).__name__}: {error}")
        return None


def _state_of(everything: Sequence[Any], like: Tensor) -> tuple[Any, ...]:
    """What a graph was recorded for: other weights, buffers or caches need another one."""
    held = (some for module in everything for some in (module._parameters, module._buffers) if some)
    where = tuple([t.data_ptr() for some in held for t in some.values() if t is not None])
    return like.dtype, like.device, like.shape[1], like.shape[3], where


def _check(decoder: Any, works: Works, plain: Works, row: RowEdit) -> None:
    """Trust the graph if the last layer's keys of the tokens that were read are those of the plain path."""
    at = torch.from_numpy(row.places).to(plain[-1].keys.device)
    off = relative_error(*(made[-1].keys.index_select(2, at) for made in (works, plain)))
    if off <= layer_tolerance(plain[-1].keys.dtype):
        _graphs[decoder].checked = True
    else:
        _give_up(decoder, f"the tokens that it read first are off by {off:.1e} (relative)")


def _give_up(decoder: Any, reason: str) -> None:
    logger.warning("edits continue without a CUDA graph: %s", reason)
    _graphs.pop(decoder, None)
    _without[decoder] = reason
