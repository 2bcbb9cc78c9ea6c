"""A stand-in for CUDA graphs that records and replays on the CPU."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from typing import Any

import pytest
import torch

from hf_longctx.generation import cuda_graph as graphs
from hf_longctx.ops.pages import Pages


def store_of(layer: Any) -> Any:
    """What the host knows of the tokens that a layer keeps to look up, and of how many it does not know the rows."""
    store = getattr(layer, "everything", None)
    if store is None or store.addresses is None:
        return None
    return store.addresses.counted, [row.filled for row in store._rows]


class Machine:
    """What a CUDA graph does, in slow motion: recording leaves no trace, a replay runs the model, host state aside."""

    def __init__(self, model: Any) -> None:
        self.model, self.recorded, self.replayed = model, 0, 0
        self.refuses = False

    def host(self, layers: list[Any]) -> list[Any]:
        return [(layer.seen, layer.padded, layer.ring.filled, store_of(layer)) for layer in layers]

    def put_back(self, layers: list[Any], state: list[Any]) -> None:
        for layer, (seen, padded, filled, store) in zip(layers, state, strict=True):
            layer.seen, layer.padded, layer.ring.filled = seen, padded, filled
            if store is not None:  # which a look-up of the CPU has counted
                layer.everything.addresses.counted = store[0]
                for row, n in zip(layer.everything._rows, store[1], strict=True):
                    row.filled = n
                    row.coded = n if row.centred_by else 0

    def graph(self, record: Any) -> Any:
        machine = self

        def recording(model: Any, cache: Any, ids: Any, pos: Any, layers: list[Any], buffers: list[Any]) -> Any:
            tensors = [t for layer in layers for t in (layer.keys, layer.values)]
            held = [value for buffer in buffers for value in vars(buffer).values()]
            held += [value for some in held if isinstance(some, Pages) for value in some]
            tensors += [t for t in held if isinstance(t, torch.Tensor)]
            before = [t.clone() for t in tensors]
            state = self.host(layers)
            found = record(model, cache, ids, pos, layers, buffers)
            self.put_back(layers, [(*now[:3], was[3]) for now, was in zip(self.host(layers), state, strict=True)])
            for tensor, was in zip(tensors, before, strict=True):
                tensor.copy_(was)
            if found.graph is not None:
                machine.recorded += 1
                found.graph.replay = lambda: machine.replay(found, cache)
            return found

        return recording

    @torch.no_grad()
    def replay(self, found: Any, cache: Any) -> None:
        self.replayed += 1
        state = self.host(cache.layers)
        out = self.model(input_ids=found.ids_B1, position_ids=found.pos_B1, past_key_values=cache, use_cache=True)
        found.output.logits.copy_(out.logits)
        self.put_back(cache.layers, state)


def machines(monkeypatch: pytest.MonkeyPatch) -> Any:
    """Makes the machine of a model."""

    def on(model: Any) -> Machine:
        machine = Machine(model)

        @contextlib.contextmanager
        def context(*_: Any, **__: Any) -> Iterator[None]:
            yield
            if machine.refuses:
                raise RuntimeError("operation not permitted when stream is capturing")

        monkeypatch.setattr(torch.cuda, "graph", context)
        monkeypatch.setattr(torch.cuda, "CUDAGraph", lambda: type("Graph", (), {})())
        monkeypatch.setattr(graphs, "_record", machine.graph(graphs._record))
        for place in ("hf_longctx.hooks.transformers", "hf_longctx.streaming.reader"):
            monkeypatch.setattr(f"{place}.can_replay", lambda model, cache: graphs._layers(cache) is not None)
        return machine

    return on


@pytest.fixture
def machine(monkeypatch: pytest.MonkeyPatch) -> Iterator[Any]:
    yield machines(monkeypatch)
    graphs._RECORDED.clear()
