"""An edit as one CUDA graph: keys moved, a few tokens read, the cache checked, all launched at once.

A forward of a few dozen tokens takes a GPU a fraction of the time that launching its kernels one by one takes. The
graph is recorded at padded sizes over its own buffers: a cache is copied into them and the edited one out of them, so
that all edits of a model's caches up to that size share the graph.
"""

# G key/value heads, S columns of the buffers, L tokens of the padded forward, D head dim
from __future__ import annotations

import logging
import time
from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import torch
from torch import Tensor
from transformers import Cache

from ...attention.rerotate import Mover, turn
from ...ops.checked import layer_tolerance
from ...ops.layout import RotaryLayout
from ...ops.scattered import Places
from ...upstream.caches import given_cache
from ..editable import SAMPLE, keys_of, not_these
from ..placed import BufferLayer, RowEdit
from . import move
from .attention import attending_from

logger = logging.getLogger("hf_longctx")
# tokens of a forward: those to read are padded to the next one of these
SIZES = (32, 64, 128, 192, 256, 320, 384, 512, 768, 1024)


class GraphLayer(BufferLayer):
    """A layer of the buffers, or a copy of it that an edit has made."""

    columns: Tensor

    def update(self, key_states: Tensor, value_states: Tensor, *args: Any, **kwargs: Any) -> tuple[Tensor, Tensor]:
        """Write into any columns, without a shape that depends on them."""
        self.keys.index_copy_(2, self.columns, key_states)
        self.values.index_copy_(2, self.columns, value_states)
        return self.keys, self.values


class EditInputs:
    """Everything that a step must know of one edit, in one tensor, which one copy takes to a GPU.

    Attributes:
        places: Positions of the tokens to read.
        ids_L: The tokens to read.
        source_S: The column of the caller's cache that has the keys of each column; -1 where there are none.
        probe_pos: Positions of a few tokens that stay, whose keys are compared with the cache's.
        probe_ids: Those tokens.
        table: Addresses of the caller's keys and values; see `triton_move`.
    """

    def __init__(self, size: int, columns: int, tensors: int, device: torch.device) -> None:
        sizes = (size, size, columns, SAMPLE, SAMPLE, 4 * tensors)
        self.everything = torch.zeros(sum(sizes), dtype=torch.long, device=device)
        pos_L, self.ids_L, self.source_S, self.probe_pos, self.probe_ids, self.table = self.everything.split(sizes)
        self.places = Places(pos_L, columns - 1)

    def fill(self, row: RowEdit) -> None:
        """Write one edit into the tensor; on the host."""
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
    """The buffers of one model, and a graph for every padded size so far.

    Args:
        modules: Its attention layers.
        like: Keys of its cache.
        columns: S; padding is written to the last one.
        state: The weights, buffers and shapes that it is recorded for.
    """

    def __init__(self, modules: Sequence[Any], like: Tensor, columns: int, state: tuple[Any, ...]) -> None:
        self.columns, self.state = columns, state
        self.dtype, self.device = like.dtype, like.device
        self.checked = False  # against the plain path
        size = (2, len(modules), 1, like.shape[1], columns, like.shape[3])
        self.buffers = like.new_zeros(size)  # keys and values, layer by layer
        self.order = [int(module.layer_idx) for module in modules]
        self.layers = [GraphLayer(k, v) for k, v in zip(*self.buffers, strict=True)]
        self.off = torch.zeros((), device=like.device)
        self.rotates: list[bool] = []
        self.layout: RotaryLayout | None = None  # of those that do
        self.steps: dict[int, Callable[[], Any]] = {}
        self.inputs: dict[int, tuple[EditInputs, EditInputs]] = {}  # on the host, and where the step reads them
        self.sources: list[Tensor] = []  # the caller's keys, then the values

    def run(self, decoder: Any, modules: Sequence[Any], cache: Cache, row: RowEdit) -> list[Any]:
        """Make one edit; ValueError if the cache holds other tokens."""
        layers: Any = [cache.layers[i] for i in self.order]
        if not self.rotates:
            mover = Mover(decoder)
            self.angles = mover.angles
            layouts = [mover.layout(module, layer.keys) for module, layer in zip(modules, layers, strict=True)]
            self.rotates = [layout is not None for layout in layouts]
            self.layout = next((layout for layout in layouts if layout is not None), None)
        read = sum(map(len, row.read))
        size = next(n for n in SIZES if n >= read)
        if size not in self.inputs:
            cpu = torch.device("cpu")
            host, inputs = (EditInputs(size, self.columns, 2 * len(modules), at) for at in (cpu, self.device))
            self.inputs[size] = host, inputs
        host, inputs = self.inputs[size]
        host.fill(row)
        self.sources = [layer.keys for layer in layers] + [layer.values for layer in layers]
        if self.device.type == "cuda":
            self.sources = [move.fitting(x) for x in self.sources]
            host.table.numpy()[:] = move.table_of(self.sources, self.rotates)
        inputs.everything.copy_(host.everything)
        if size not in self.steps:
            self.steps[size] = record(lambda: self._step(decoder, modules, inputs), self.device)
        self.steps[size]()
        made = self.buffers[..., : len(row.ids), :].clone()  # launched before the host waits for the check's result
        off = float(self.off)
        self.sources = []
        if not off <= layer_tolerance(self.dtype):
            raise not_these(modules[0], SAMPLE, off)
        return [GraphLayer(k, v) for k, v in zip(*made, strict=True)]

    def _step(self, decoder: Any, modules: Sequence[Any], inputs: EditInputs) -> None:
        """From the inputs to finished buffers; no shape and no address depends on the edit."""
        to_S = torch.arange(self.columns, device=self.device)
        assert self.layout is not None
        turning = turn(self.angles, modules[0], self.layout, inputs.source_S[None], to_S[None])
        stays = (inputs.source_S == to_S)[None, :, None]  # to the last bit
        turning = replace(turning, cos=turning.cos.masked_fill(stays, 1.0), sin=turning.sin.masked_fill(stays, 0.0))
        move.fill(self.buffers, self.sources, self.rotates, inputs.table, inputs.source_S, turning)
        first = self.order.index(0)
        with attending_from(decoder, inputs.places):
            found = keys_of(decoder, inputs.probe_ids[None], inputs.probe_pos[None], len(modules)).float()
            kept = self.buffers[0, first].index_select(2, inputs.probe_pos).float()
            self.off.copy_((found - kept).norm() / found.norm().clamp(min=1e-15))
            for layer in self.layers:
                layer.columns = inputs.places.pos_L
            in_order: list[Any] = [self.layers[self.order.index(i)] for i in range(len(modules))]
            decoder(
                input_ids=inputs.ids_L[None],
                position_ids=inputs.places.pos_L[None],
                **given_cache(decoder, Cache(layers=in_order)),
                use_cache=True,
            )


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
