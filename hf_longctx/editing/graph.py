"""An edit as one CUDA graph: keys moved, a few tokens read, the cache checked, all launched at once.

A forward of a few dozen tokens takes a GPU a fraction of the time that launching its kernels one by one takes. The
graph is recorded at padded sizes over buffers of its own, into which a cache is copied and out of which the edited one
is: all edits of a model's caches up to that size share it. Its first result is checked against the plain path.
"""

# G key/value heads, S columns of the buffers, L tokens of the padded forward, D head dim
from __future__ import annotations

import logging
import time
from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any
from weakref import WeakKeyDictionary

import numpy as np
import torch
from torch import Tensor
from transformers import Cache
from transformers.cache_utils import CacheLayerMixin

from ..attention.rerotate import Mover, rotary_of, turn
from ..ops.available import TRITON
from ..ops.checked import layer_tolerance, relative_error
from ..ops.scattered import Places
from ..upstream.caches import given_cache
from . import move
from .attention import using
from .editable import SAMPLE, keys_of, not_these
from .parts import Parts
from .placed import Row, why_not

logger = logging.getLogger("hf_longctx")
# tokens of a forward; what is read is padded to the next one
SIZES = (32, 64, 128, 192, 256, 320, 384, 512, 768, 1024)
ROUND = 4096  # columns; buffers are a multiple of it
OURS = ("torch.", "transformers.", "hf_longctx.")

_graphs: WeakKeyDictionary[Any, EditGraph] = WeakKeyDictionary()  # of each decoder
_without: WeakKeyDictionary[Any, str] = WeakKeyDictionary()  # decoders that go without, and why
_edited: WeakKeyDictionary[Any, int] = WeakKeyDictionary()  # edits so far that a graph could have made


def refuses(parts: Parts, cache: Cache, row: Row) -> str | None:
    """The reason why this edit cannot come from a graph; None if it can."""
    decoder, modules, everything = parts
    reason = why_not(decoder, modules, cache)
    if reason is not None:
        return reason
    layers: Any = cache.layers
    keys = layers[0].keys
    if not suits(keys):
        return f"its keys are {keys.dtype} on {keys.device}, not half precision on a GPU"
    if keys.shape[3] > 256 or keys.shape[3] % 8 or any(layer.keys.device != keys.device for layer in layers):
        return "its layers are on several devices, or of a head dim without a kernel"
    own = [module._parameters for module in everything if module._parameters]
    if {p.device for weights in own for p in weights.values() if p is not None} - {keys.device}:
        return "its weights are not all on that GPU"
    foreign = next((cls for cls in set(map(type, everything)) if not cls.__module__.startswith(OURS)), None)
    if foreign is not None:
        return f"{foreign.__name__} is no part of a stock model, and may change what it does between edits"
    for module in everything:
        if not module._forward_hooks and not module._forward_pre_hooks:
            continue
        hooks = (*module._forward_hooks.values(), *module._forward_pre_hooks.values())
        if not all(str(getattr(hook, "__module__", "")).startswith(OURS) for hook in hooks):
            return "somebody else's hooks want to see its forwards run"
    if rotary_of(decoder).per_layer_type or len({type(m) for m in modules}) > 1 or hasattr(modules[0], "sinks"):
        return "its layers rotate or attend in several ways"
    read = sum(map(len, row.fresh))
    if not 0 < read <= SIZES[-1] or not any(n for _, _, n in row.copies):
        return f"{read} tokens are to be read, and a graph reads 1 to {SIZES[-1]} behind others"
    if decoder.training:
        return "it is in train mode"
    return None


def suits(keys: Tensor) -> bool:
    """Is there a kernel for such keys? In tests, plain steps on a CPU stand in for it."""
    return TRITON and keys.is_cuda and keys.dtype in (torch.bfloat16, torch.float16)


def pays(decoder: Any) -> bool:
    """Recording takes as long as a few edits: from the second one of a model on."""
    _edited[decoder] = _edited.get(decoder, 0) + 1
    return _edited[decoder] > 1 and decoder not in _without


def forget(decoder: Any) -> None:
    """Free the buffers of a model."""
    for known in (_graphs, _edited, _without):
        known.pop(decoder, None)


def edit_from_graph(parts: Parts, cache: Cache, row: Row) -> list[Any] | None:
    """The layers in the making, ready to be committed; None if it cannot be recorded; ValueError for other tokens."""
    decoder, modules, everything = parts
    graph = _graphs.get(decoder)
    layers: Any = cache.layers
    need = max(len(row.ids), layers[0].keys.shape[2]) + 1
    state = state_of(everything, layers[0].keys)
    try:
        if graph is None or graph.columns < need or graph.state != state:
            _graphs.pop(decoder, None)
            graph = None  # its buffers go before new ones are made
            graph = _graphs[decoder] = EditGraph(modules, layers[0].keys, -(-need // ROUND) * ROUND, state)
        return graph.run(decoder, modules, cache, row)
    except (RuntimeError, TypeError, NotImplementedError) as error:
        give_up(decoder, f"{type(error).__name__}: {error}")
        return None


def state_of(everything: Sequence[Any], like: Tensor) -> tuple[Any, ...]:
    """What a graph was recorded for: other weights, buffers or caches need another one."""
    held = (some for module in everything for some in (module._parameters, module._buffers) if some)
    where = tuple([t.data_ptr() for some in held for t in some.values() if t is not None])
    return like.dtype, like.device, like.shape[1], like.shape[3], where


def give_up(decoder: Any, reason: str) -> None:
    """No graph for this model any more."""
    logger.warning("edits go on without a CUDA graph: %s", reason)
    _graphs.pop(decoder, None)
    _without[decoder] = reason


class KeyValues(CacheLayerMixin):
    """A layer of the buffers, into which a forward writes at any columns."""

    is_sliding = False
    is_initialized = True

    def __init__(self, keys: Tensor, values: Tensor) -> None:
        super().__init__()
        self.keys, self.values = keys, values
        self.is_initialized = True
        self.columns: Tensor | None = None

    def lazy_initialization(self, key_states: Tensor, value_states: Tensor) -> None:
        raise AssertionError("filled when it was made")

    def update(self, key_states: Tensor, value_states: Tensor, *args: Any, **kwargs: Any) -> tuple[Tensor, Tensor]:
        assert self.keys is not None
        assert self.values is not None
        assert self.columns is not None
        self.keys.index_copy_(2, self.columns, key_states)
        self.values.index_copy_(2, self.columns, value_states)
        return self.keys, self.values

    def get_mask_sizes(self, query_length: int) -> tuple[int, int]:
        return query_length, 0

    def get_seq_length(self) -> int:
        return 0

    def get_max_length(self) -> int:
        return -1


class Inputs:
    """What a step is told of one edit, in one piece of memory, which one copy takes to a GPU.

    Attributes:
        places, ids_L: where what is read stands, and its tokens.
        source_S: in which column of the caller's cache the keys of each column are; -1 where there are none.
        probe_pos, probe_ids: a few tokens that stay, to be looked up in the cache.
        table: where the caller's keys and values lie; see `triton_move`.
    """

    def __init__(self, size: int, columns: int, tensors: int, device: torch.device) -> None:
        sizes = (size, size, columns, SAMPLE, SAMPLE, 4 * tensors)
        self.everything = torch.zeros(sum(sizes), dtype=torch.long, device=device)
        pos_L, self.ids_L, self.source_S, self.probe_pos, self.probe_ids, self.table = self.everything.split(sizes)
        self.places = Places(pos_L, columns - 1)

    def fill(self, row: Row) -> None:
        """Put one edit in; on the host."""
        read = row.places
        self.places.fill(read)
        self.ids_L.numpy()[: len(read)] = row.ids[read]
        source_S = self.source_S.numpy()
        source_S[:] = -1
        for old, new, n in row.copies:
            source_S[new : new + n] = np.arange(old, old + n)
        # the k-th of the tokens that stay, for a few k from the first one to the last one
        _, new_C, n_C = np.array(row.copies).T
        before_C = np.cumsum(n_C) - n_C
        k = np.linspace(0, n_C.sum() - 1, SAMPLE, dtype=np.int64)
        copy = np.searchsorted(before_C, k, side="right") - 1
        probe_pos = new_C[copy] + k - before_C[copy]
        self.probe_pos.numpy()[:] = probe_pos
        self.probe_ids.numpy()[:] = row.ids[probe_pos]


class EditGraph:
    """The buffers of one model, and a graph for every padded size that was needed.

    Args:
        like: keys of its cache.
        columns: S; the last one takes what padding writes.
    """

    def __init__(self, modules: Sequence[Any], like: Tensor, columns: int, state: tuple[Any, ...]) -> None:
        self.columns, self.state = columns, state
        self.dtype, self.device = like.dtype, like.device
        self.checked = False  # against the plain path
        size = (2, len(modules), 1, like.shape[1], columns, like.shape[3])
        self.buffers = like.new_zeros(size)  # keys and values, layer by layer
        self.order = [int(module.layer_idx) for module in modules]
        self.slots = [KeyValues(self.buffers[0, i], self.buffers[1, i]) for i in range(len(modules))]
        self.off = torch.zeros((), device=like.device)
        self.rotates: list[bool] = []
        self.steps: dict[int, Callable[[], Any]] = {}
        self.inputs: dict[int, tuple[Inputs, Inputs]] = {}  # on the host, and where the step reads them
        self.sources: list[Tensor] = []  # the caller's keys, then the values

    def run(self, decoder: Any, modules: Sequence[Any], cache: Cache, row: Row) -> list[Any]:
        """Make one edit."""
        layers: Any = cache.layers
        if not self.rotates:
            mover = Mover(decoder)
            self.rotates = [
                mover.rotates(module, layers[i].keys) for module, i in zip(modules, self.order, strict=True)
            ]
        read = sum(map(len, row.fresh))
        size = next(n for n in SIZES if n >= read)
        if size not in self.inputs:
            self.inputs[size] = tuple(  # type: ignore[assignment]
                Inputs(size, self.columns, 2 * len(modules), device) for device in (torch.device("cpu"), self.device)
            )
        host, inputs = self.inputs[size]
        host.fill(row)
        self.sources = [layers[i].keys for i in self.order] + [layers[i].values for i in self.order]
        if self.device.type == "cuda":
            self.sources = [move.fitting(x) for x in self.sources]
            host.table.numpy()[:] = move.table_of(self.sources, self.rotates)
        inputs.everything.copy_(host.everything)
        if size not in self.steps:
            self.steps[size] = record(lambda: self._step(decoder, modules, inputs), self.device)
        self.steps[size]()
        made = self.buffers[..., : len(row.ids), :].clone()  # launched before the host waits for what the step found
        off = float(self.off)
        self.sources = []
        if not off <= layer_tolerance(self.dtype):
            raise not_these(modules[0], SAMPLE, off)
        return [_Made(k, v) for k, v in zip(*made.unbind(0), strict=True)]

    def _step(self, decoder: Any, modules: Sequence[Any], inputs: Inputs) -> None:
        """Everything from what the inputs tell to finished buffers; no shape and no address depends on the edit."""
        to_S = torch.arange(self.columns, device=self.device)
        turning = turn(rotary_of(decoder), modules[0], inputs.source_S[None], to_S[None])
        stays = (inputs.source_S == to_S)[None, :, None]  # to the last bit
        turning = replace(turning, cos=turning.cos.masked_fill(stays, 1.0), sin=turning.sin.masked_fill(stays, 0.0))
        move.fill(self.buffers, self.sources, self.rotates, inputs.table, inputs.source_S, turning)
        first = self.order.index(0)
        with using(decoder, inputs.places):
            found = keys_of(decoder, inputs.probe_ids[None], inputs.probe_pos[None], len(modules)).float()
            kept = self.buffers[0, first].index_select(2, inputs.probe_pos).float()
            self.off.copy_((found - kept).norm() / found.norm().clamp(min=1e-15))
            in_order = sorted(range(len(modules)), key=lambda i: self.order[i])
            for slots in self.slots:
                slots.columns = inputs.places.pos_L
            decoder(
                input_ids=inputs.ids_L[None],
                position_ids=inputs.places.pos_L[None],
                **given_cache(decoder, Cache(layers=[self.slots[i] for i in in_order])),
                use_cache=True,
            )


class _Made:
    """Keys and values that a graph has made."""

    def __init__(self, keys: Tensor, values: Tensor) -> None:
        self.k, self.v = keys, values

    def commit(self, layer: Any) -> None:
        """Put them into the caller's layer."""
        layer.keys, layer.values = self.k, self.v


def is_checked(decoder: Any) -> bool:
    """Has a model's graph given what the plain path gives?"""
    graph = _graphs.get(decoder)
    return graph is not None and graph.checked


def check(decoder: Any, made: Sequence[Any], plain: Sequence[Any], row: Row) -> None:
    """A graph's first result against the plain path's: the last layer's keys of what was read must agree."""
    at = torch.from_numpy(row.places).to(plain[-1].k.device)
    off = relative_error(*(works[-1].k.index_select(2, at) for works in (made, plain)))
    if off <= layer_tolerance(plain[-1].k.dtype):
        _graphs[decoder].checked = True
    else:
        give_up(decoder, f"what the first one read is off by {off:.1e} (relative)")


def record(step: Callable[[], None], device: torch.device) -> Callable[[], Any]:
    """`step` as a graph; a CPU, where tests run, has none and runs the step itself."""
    if device.type != "cuda":
        return step
    start = time.perf_counter()
    stream = torch.cuda.Stream(device)
    stream.wait_stream(torch.cuda.current_stream(device))
    with torch.cuda.stream(stream):  # kernels are compiled and libraries loaded outside of the recording
        step()
    torch.cuda.current_stream(device).wait_stream(stream)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph, capture_error_mode="thread_local"):
        step()
    logger.info("recorded an edit as a CUDA graph in %.2f s", time.perf_counter() - start)
    return graph.replay
