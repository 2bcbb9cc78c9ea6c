"""Decoding from a CUDA graph: a cache of fixed buffers keeps its addresses, so one recorded step serves every token.

These are the caches of bounded methods, those that look tokens up in pages (which record again when the text has grown
by a quarter), and those after a shared prefix (when their buffers grow).

Launching a small model's kernels one by one takes many times as long as running them. A graph launches them all at
once; recording it is one forward, and nothing is compiled. A model's first replay is checked against the model itself.
A graph belongs to one cache, and so to one `generate` call: between calls a model may change (adapters, weights,
methods), within one it does not.
"""

# B batch, V vocabulary
from __future__ import annotations

import logging
import time
import weakref
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from ..attention.state import STATE
from ..cache.addresses import Addresses
from ..cache.host_room import make_room
from ..cache.ring import Ring
from ..cache.stock import has_fixed_buffers
from ..ops.checked import layer_tolerance, relative_error
from ..ops.sealed import is_sealed
from ..upstream.caches import CACHE_NAMES, cache_in, given_cache

logger = logging.getLogger("hf_longctx")
Layers = Sequence[Any]  # with fixed buffers: those of their `ring`, once they have one
# what a one-token forward may be given besides tensors of its own; anything else is for the model itself
HARMLESS = {"attention_mask", "use_cache", "return_dict", "logits_to_keep", "cache_position"}


@dataclass
class RecordedStep:
    """A one-token forward as a graph, and the tensors it reads and writes."""

    graph: Any  # None: the model does what a graph cannot hold
    ids_B1: Tensor
    pos_B1: Tensor
    output: Any
    buffers: list[weakref.ref[Any]] = field(default_factory=list)
    read: Any = None  # tensors that methods keep for all forwards, held as long as the graph reads them

    def fits(self, buffers: Sequence[Any], ids_B1: Tensor) -> bool:
        """Was it recorded for these very buffers, and can it be given its inputs?"""
        held = self.buffers
        same = not is_sealed(self.ids_B1)
        same &= len(held) == len(buffers) and all(ref() is now for ref, now in zip(held, buffers, strict=True))
        return same and self.ids_B1.shape == ids_B1.shape and self.ids_B1.device == ids_B1.device


# models, and the kinds of cache whose graphs gave what the model gives
_CHECKED: weakref.WeakKeyDictionary[Any, set[type]] = weakref.WeakKeyDictionary()
# by the ring that every layer of a cache shares: a copied cache has another, and a graph dies with its cache
_RECORDED: weakref.WeakKeyDictionary[Ring, RecordedStep | None] = weakref.WeakKeyDictionary()


def can_replay(model: Any, cache: Any) -> bool:
    """Can one-token forwards of `model` over `cache` come from a graph?

    All layers must stand in fixed buffers, all weights on one GPU, and no hooks of other code watch the forwards.
    """
    devices = {parameter.device for parameter in model.parameters()}
    if len(devices) != 1 or next(iter(devices)).type != "cuda" or getattr(model.config, "output_hidden_states", False):
        return False
    hooks = (hook for m in model.modules() for hook in (*m._forward_hooks.values(), *m._forward_pre_hooks.values()))
    if any(not str(getattr(hook, "__module__", "")).startswith(("hf_longctx", "transformers")) for hook in hooks):
        return False
    return _layers(cache) is not None


def _layers(cache: Any) -> Layers | None:
    """The layers of a cache, if all of them can stand in fixed buffers."""
    return cache.layers if has_fixed_buffers(cache) else None


def _rings(layers: Layers) -> list[Ring]:
    """The rings that all layers of a cache share; none if a layer has none yet."""
    rings = list(dict.fromkeys(layer.ring for layer in layers))
    return [] if None in rings else rings


def _addresses(layers: Layers) -> list[Addresses | None]:
    """Where the layers find what they look up, with room for a token; None: kernels cannot find it."""
    stores = [layer.everything for layer in layers if getattr(layer, "everything", None) is not None]
    make_room(stores, 1)
    for store in stores:
        store.pages()  # where all lies by now
    return [store.addresses for store in stores]


def forget(cache: Any) -> None:
    """Let the next step over `cache` be recorded again: adapters or weights may have changed since."""
    for ring in _rings(_layers(cache) or ()):
        _RECORDED.pop(ring, None)


def graph_forward(model: Any) -> Callable[..., Any]:
    """A stand-in for `model(...)` that replays one-token forwards, and runs all others as they are.

    For models and caches that `can_replay`.
    """

    def forward(**inputs: Any) -> Any:
        ids, cache = inputs.get("input_ids"), cache_in(inputs)
        plain = {key for key, value in inputs.items() if value is not None and value is not False}
        known = plain <= HARMLESS | {"input_ids", "position_ids", *CACHE_NAMES}
        layers = _layers(cache)
        if not known or ids is None or ids.shape[1] != 1 or layers is None or torch.is_grad_enabled():
            return model(**inputs)
        rings = _rings(layers)
        if not rings or rings[0] not in _RECORDED or any(ring.must_grow for ring in rings):
            output = model(**inputs)  # turns layers into rings (larger ones), and compiles kernels
            rings = _rings(layers)
            # while a step is recorded, which reads all columns, nothing must be compiled: so one is run like it first
            if all(ring.readable == ring.size for ring in rings):
                _RECORDED.update(dict.fromkeys(rings[:1]))
            for ring in rings:
                ring.whole = True
            return output
        return _step(model, inputs, layers, rings)

    return forward


def _step(model: Any, inputs: dict[str, Any], layers: Layers, rings: list[Ring]) -> Any:
    ids, cache, pos = inputs["input_ids"], cache_in(inputs), inputs.get("position_ids")
    if pos is None:
        pos = torch.full_like(ids, cache.get_seq_length())
    if inputs.get("attention_mask") is not None:
        pos = torch.where(inputs["attention_mask"][:, -1:] != 0, pos, -1)  # a row that waits
    recorded, stores = _RECORDED[rings[0]], _addresses(layers)
    if None in stores:  # tokens to look up do not lie where kernels find them
        return model(**inputs)
    buffers: list[Any] = [*rings, *stores]
    if recorded is not None and not recorded.fits(buffers, ids):
        _RECORDED[rings[0]] = None
        return model(**inputs)  # compiles kernels for other sizes, which must not happen while one is recorded
    if recorded is None:
        recorded = _RECORDED[rings[0]] = _record(model, cache, ids, pos, layers, buffers)
    if recorded.graph is None:
        return model(**inputs)
    recorded.ids_B1.copy_(ids)
    recorded.pos_B1.copy_(pos.expand_as(ids))
    recorded.graph.replay()
    if type(layers[0]) not in _CHECKED.get(model, ()):
        return _check(model, inputs, recorded, layers, buffers)
    for layer in layers:
        layer.seen += 1
    for buffer in buffers:
        buffer.count()
    # the next replay writes over these logits
    of = type(recorded.output)
    return of(logits=recorded.output.logits.clone(), **given_cache(of, cache))


def _check(model: Any, inputs: dict[str, Any], recorded: RecordedStep, layers: Layers, buffers: list[Any]) -> Any:
    """A model's first replay against the model itself, whose output is returned; they must agree, or it stays eager."""
    replayed = recorded.output.logits[:, -1]
    for buffer in buffers:
        buffer.take_back()  # the model writes the same places once more
    output = model(**inputs)
    off = relative_error(replayed, output.logits[:, -1])
    if off <= layer_tolerance(output.logits.dtype):
        _CHECKED.setdefault(model, set()).add(type(layers[0]))
    else:
        recorded.graph = None
        logger.warning("decoding continues without a CUDA graph: its first logits are off by %.1e (relative)", off)
    return output


def _record(model: Any, cache: Any, ids: Tensor, pos: Tensor, layers: Layers, buffers: list[Any]) -> RecordedStep:
    """Record one forward without running it. Everything is as before if the model does what a graph cannot hold."""
    start = time.perf_counter()
    recorded = RecordedStep(torch.cuda.CUDAGraph(), ids.clone(), pos.expand_as(ids).clone(), None)
    recorded.buffers = [weakref.ref(buffer) for buffer in buffers]
    seen, counted = [layer.seen for layer in layers], [buffer.counted for buffer in buffers]
    padded = [layer.padded for layer in layers]
    for buffer in buffers:
        buffer.recorded = True
    random = torch.cuda.default_generators[ids.get_device()] if ids.is_cuda else None
    before = None if random is None else random.clone_state()
    failed = True
    try:
        with torch.cuda.graph(recorded.graph, capture_error_mode="thread_local"):
            output = model(
                input_ids=recorded.ids_B1,
                position_ids=recorded.pos_B1,
                **given_cache(model, cache),
                use_cache=True,
                logits_to_keep=1,
                return_dict=True,
            )
        recorded.output = type(output)(logits=output.logits)  # not the cache: a graph must not keep it alive
        states = {id(vars(m)[STATE]): vars(m)[STATE] for m in model.modules() if STATE in vars(m)}  # layers share one
        recorded.read = [state.constants.all() for state in states.values()]
        failed = False
    except (RuntimeError, ValueError, TypeError) as error:
        logger.warning("decoding continues without a CUDA graph: %s: %s", type(error).__name__, error)
    finally:
        # recording ran the bookkeeping on the host, and nothing on the GPU
        for layer, n, was in zip(layers, seen, padded, strict=True):
            layer.seen, layer.padded = n, was
        for buffer, n in zip(buffers, counted, strict=True):
            buffer.counted, buffer.recorded = n, not failed
    if failed:
        recorded.graph = None
        # a capture that broke off leaves the generator in the state of being captured
        if random is not None and before is not None:
            random.graphsafe_set_state(before)
    else:
        logger.info("recorded a decoding step as a CUDA graph in %.2f s", time.perf_counter() - start)
    return recorded
