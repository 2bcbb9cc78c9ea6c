"""Greedy decoding from a CUDA graph, over a cache of sliding windows of transformers beside un-rotated keys."""

from __future__ import annotations

import copy
from typing import Any

import torch
from torch import Tensor
from transformers import DynamicCache
from transformers.cache_utils import DynamicSlidingWindowLayer

from hf_longctx.ops.checked import layer_tolerance, relative_error
from hf_longctx.upstream.caches import given_cache


class SteadyWindow(DynamicSlidingWindowLayer):
    """transformers' sliding layer whose keys stay at one address once its window is full, as a graph needs."""

    steady: tuple[Tensor, Tensor] | None = None

    def update(self, key_states: Tensor, value_states: Tensor, *args: Any, **kwargs: Any) -> tuple[Tensor, Tensor]:
        """As transformers does; what is kept is copied to where it was."""
        readable: tuple[Tensor, Tensor] = super().update(key_states, value_states, *args, **kwargs)
        kept = self.keys, self.values
        if self.steady is None or self.steady[0].shape != kept[0].shape:
            self.steady = kept[0].clone(), kept[1].clone()
        else:
            for buffer, new in zip(self.steady, kept, strict=True):
                buffer.copy_(new)
        self.keys, self.values = self.steady
        return readable


def steady_cache(config: Any) -> Any:
    """The model's own cache, with steady windows."""
    cache = DynamicCache(config=config)
    cache.layers = [
        SteadyWindow(layer.sliding_window) if type(layer) is DynamicSlidingWindowLayer else layer
        for layer in cache.layers
    ]
    return cache


class Writer:
    """Greedy decoding whose token and position stay in the same tensors."""

    def __init__(self, model: Any, cache: Any, ids_11: Tensor, pos_11: Tensor) -> None:
        self.model, self.cache, self.ids, self.pos = model, cache, ids_11, pos_11

    def step(self) -> Tensor:
        """Write one token; its logits."""
        given = given_cache(self.model, self.cache)
        logits: Tensor = self.model(self.ids, position_ids=self.pos, **given, use_cache=True, logits_to_keep=1).logits
        self.ids.copy_(logits[:, -1:].argmax(-1))
        self.pos.add_(1)
        return logits

    def twin(self) -> Writer:
        """The same, over a copy of the cache."""
        return Writer(self.model, copy.deepcopy(self.cache), self.ids.clone(), self.pos.clone())


def recorded(writer: Writer) -> tuple[Any, str | None, int]:
    """What replays a step, and the tokens written by that; or a writer over a copy of the cache, and why."""
    experts = getattr(writer.model, "get_experts_implementation", dict)()
    if experts:
        writer.model.set_experts_implementation("batched_mm")  # as `generate` does; groups cannot be recorded
    twin, graph = writer.twin(), torch.cuda.CUDAGraph()
    right = twin.step()
    generator = torch.cuda.default_generators[writer.ids.get_device()]
    before = generator.clone_state()
    try:
        with torch.cuda.graph(graph):
            logits = writer.step()
    except Exception as error:  # whatever a model does that a graph cannot hold
        generator.graphsafe_set_state(before)  # else it stays in the state of being captured
        return twin, f"{type(error).__name__}: {(str(error).splitlines() or [''])[0][:200]}", 0
    finally:
        if experts:
            writer.model.set_experts_implementation(experts)
    graph.replay()
    off = relative_error(logits, right)
    if not off <= layer_tolerance(logits.dtype):
        raise RuntimeError(f"the graph's first logits are off by {off:.1e} (relative)")
    return graph.replay, None, 1
