"""What becomes of a decoding step's operators when a CUDA graph records it: kernels, or copies and fills of memory.

A graph that is a straight line of kernels is launched in about the same time however many there are; its other nodes
are launched one by one, while the GPU waits. Which operators those are is known of torch, so no GPU is needed.
"""

from __future__ import annotations

import contextlib
from collections import Counter
from collections.abc import Iterator
from typing import Any
from unittest import mock

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from transformers import DynamicCache

from hf_longctx.generation import cuda_graph
from tests.generation.launches import as_on_a_gpu, place
from tests.tiny import text, tiny

COPIES = {"copy_", "clone", "_to_copy", "contiguous"}
# these fill memory by cudaMemset before their kernels, or ask the host how much they have found
FILLS = {
    "nonzero", "masked_select", "_unique2", "unique_dim", "bincount", "histc", "sort", "argsort", "index_put_",
    "index_put", "_local_scalar_dense", "equal", "is_nonzero",
}  # fmt: skip
FROM_HOST = {"lift_fresh", "_local_scalar_dense", "equal", "is_nonzero"}  # torch.tensor(...), .item(), bool(...)


def is_memcpy(name: str, source: Any, made: Any) -> bool:
    """Is it a copy of memory as it is? Copies into another dtype or order are kernels."""
    if name not in COPIES or not isinstance(source, Tensor) or not isinstance(made, Tensor):
        return False
    return source.dtype == made.dtype and source.is_contiguous() and made.is_contiguous() and source.numel() > 0


class Nodes(TorchDispatchMode):
    """Notes what would be no kernel, by (line, name), and every operator by name."""

    def __init__(self) -> None:
        super().__init__()
        self.others: Counter[tuple[str, str]] = Counter()
        self.from_host: Counter[tuple[str, str]] = Counter()
        self.names: Counter[str] = Counter()
        self.inside = False  # a kernel that the interpreter runs

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        made, name = func(*args, **(kwargs or {})), func.overloadpacket.__name__
        if self.inside:
            return made
        if name in FROM_HOST:
            self.from_host[place(), name] += 1
        if func.is_view:
            return made
        self.names[name] += 1
        source = args[1] if name == "copy_" else args[0] if args else None
        if name in FILLS or is_memcpy(name, source, made):
            self.others[place(), name] += 1
        return made

    @contextlib.contextmanager
    def noting(self) -> Iterator[None]:
        """Note inside the block, but what Triton's interpreter does by itself."""
        from triton.runtime.interpreter import InterpretedFunction

        launch = InterpretedFunction.run

        def run(kernel: Any, *args: Any, **kwargs: Any) -> Any:
            self.inside = True
            try:
                return launch(kernel, *args, **kwargs)
            finally:
                self.inside = False

        with mock.patch.object(InterpretedFunction, "run", run), self:
            yield


@torch.no_grad()
def nodes(method: Any, batch: int = 1, dtype: torch.dtype = torch.float32) -> Nodes:
    """Of one step of a tiny model of two layers."""
    model, ids, cache = tiny(num_hidden_layers=2).to(dtype), text(batch, 42), DynamicCache()
    with contextlib.nullcontext() if method is None else method.on(model), as_on_a_gpu():
        model(ids[:, :40], past_key_values=cache, use_cache=True)
        for t in (40, 41):  # the first one makes buffers and checks kernels
            seen, pos = Nodes(), torch.full((batch, 1), t)  # as a graph has them
            with seen.noting():
                model(input_ids=ids[:, t : t + 1], position_ids=pos, past_key_values=cache, use_cache=True,
                      logits_to_keep=1)  # fmt: skip
    return seen


class NoGraph:
    """Stands in for a graph; it writes nothing."""

    def replay(self) -> None:
        """As a graph's, which returns before the GPU has done it."""


@torch.no_grad()
def around_replays(method: Any, tokens: int = 8) -> Nodes:
    """What the host gives the GPU besides the graph, in so many tokens that are replayed."""
    model, ids, cache = tiny(num_hidden_layers=2), text(1, 44), DynamicCache()

    def record(model: Any, cache: Any, ids: Any, pos: Any, layers: Any, buffers: Any) -> Any:
        recorded = cuda_graph.RecordedStep(NoGraph(), ids.clone(), pos.expand_as(ids).clone(), output)
        recorded.buffers = [cuda_graph.weakref.ref(buffer) for buffer in buffers]
        cuda_graph._CHECKED.setdefault(model, set()).add(type(layers[0]))
        return recorded

    with method.on(model), as_on_a_gpu(), mock.patch.object(cuda_graph, "_record", record):
        output = model(ids[:, :40], past_key_values=cache, use_cache=True)
        step, seen = cuda_graph.graph_forward(model), Nodes()
        given: dict[str, Any] = {"past_key_values": cache, "use_cache": True}
        pos = [torch.full((1, 1), t) for t in range(40, 50 + tokens)]
        for t in range(10):
            step(input_ids=ids[:, :1], position_ids=pos[t], **given)
        with seen.noting():
            for t in range(10, 10 + tokens):
                step(input_ids=ids[:, :1], position_ids=pos[t], **given)
    return seen
