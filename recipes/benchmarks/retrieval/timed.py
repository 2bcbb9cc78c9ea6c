"""Readers that stand behind a long text, and the time of their next tokens."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from statistics import median
from time import perf_counter
from typing import Any
from unittest import mock

import torch
from torch import Tensor

from hf_longctx import stream
from hf_longctx.generation.cuda_graph import can_replay, forget, graph_forward
from hf_longctx.upstream.caches import given_cache

from ..decoding import compiled_ms, eager_ms, tokens_ms
from ..graph_nodes import recorded_nodes, replays
from ..timing import Kernels, kernels, synchronize
from .run import Run

SEED = 4000  # of texts whose words do not matter
NAMED = 12  # kernels that are told by name
EAGER = "it decodes without a CUDA graph"


@contextmanager
def behind(run: Run, method: Any, length: int, ids_L: Tensor | None = None) -> Iterator[Any]:
    """A reader under a method that has read so many tokens, without look-ups: of the texts, or those that are given."""
    with method.on(run.model):
        look_up = not method.looks_up
        if ids_L is None:
            ids_L = run.texts.make(length, SEED) % run.model.config.vocab_size
        # as many tokens a forward pass as anybody gets who does not say
        chunk = None if run.model.device.type == "cuda" else run.sizes.chunk
        yield stream(run.model, ids_L, chunk=chunk, bounded=False, look_up=look_up)


def token_ms(run: Run, reader: Any) -> tuple[float, bool]:
    """Milliseconds of a token that is written now, and whether it comes from a CUDA graph."""
    replays = can_replay(run.model, reader.cache)
    step = graph_forward(run.model) if replays else run.model
    count, warm = run.sizes.scale.steps
    device = run.model.device.type
    return tokens_ms(step, reader.cache, reader.position, count, warm, device), replays


def step_of(model: Any, cache: Any, at: int) -> tuple[Callable[[], None], bool]:
    """What writes a token behind so many, and one more each time; does a CUDA graph replay it?"""
    device, replays, n = model.device.type, can_replay(model, cache), at
    step, ids = graph_forward(model) if replays else model, torch.full((1, 1), 50, device=device)

    def work() -> None:
        nonlocal n
        pos, n = torch.full((1, 1), n, device=device), n + 1
        step(input_ids=ids, position_ids=pos, **given_cache(model, cache), use_cache=True)

    return work, replays


@torch.no_grad()
def parts_of_a_token(run: Run, reader: Any, count: int = 10) -> dict[str, Any]:
    """What a token behind those of `token_ms` is made of; on a CPU the time until its call returns alone.

    Milliseconds of one that is waited for, until its call returns, of that in the launch of its graph, of each of
    several that nothing waits for between, and while kernels run; the longest kernels, where the GPU waits between
    them, and the nodes of the graph. What a token takes beyond the time of several is the launching of it.
    """
    device = run.model.device.type
    work, replayed = step_of(run.model, reader.cache, reader.position + run.sizes.scale.steps[0])

    def clocked(calls: int) -> tuple[float, float]:
        synchronize(device)
        start = perf_counter()
        for _ in range(calls):
            work()
        returned = perf_counter() - start
        synchronize(device)
        return 1e3 * returned, 1e3 * (perf_counter() - start)

    def again() -> None:
        forget(reader.cache)
        for _ in range(3):  # the second one records, and the third replays
            work()

    work()
    with replays() as launched:
        alone = [clocked(1) for _ in range(count)]
    found: dict[str, Any] = {"until its call returns, ms": median(one[0] for one in alone)}
    if device == "cuda":
        found = {"ms": median(one[1] for one in alone), **found}
        with replays() as behind_others:
            found["ms, of several"] = clocked(count)[1] / count
        if launched:
            found["of these the graph's launch, ms"] = 1e3 * median(launched)
            found["the graph's launch while others run, ms"] = 1e3 * median(behind_others)
        found |= _seen(kernels(work, warm_up=0))
        told = recorded_nodes(again) if replayed else None
        found |= {} if told is None else {"nodes of the graph": told}
    return found


def _seen(kernels: Kernels) -> dict[str, Any]:
    longest = kernels.longest(NAMED)
    return {"kernels, ms": kernels.us / 1e3, "longest kernels": longest, "the GPU waits": kernels.waits()}


@torch.no_grad()
def reading_of(run: Run, reader: Any, tokens: int, look_up: bool) -> dict[str, Any]:
    """Of some more tokens that are read at once: milliseconds, until the call returns, and what kernels take of them.

    Which take most, and where the GPU waits for the host, with the profiler on.
    """
    ids_L, device = run.texts.make(tokens, SEED + 2), run.model.device.type

    def read() -> None:
        reader.read(ids_L, look_up=look_up)

    read()
    synchronize(device)
    start = perf_counter()
    read()
    returned = perf_counter() - start
    synchronize(device)
    found = {"tokens": tokens, "ms": 1e3 * (perf_counter() - start), "until its call returns, ms": 1e3 * returned}
    return found | _seen(kernels(read, runs=1, warm_up=0)) if device == "cuda" else found


def stock_ms(run: Run) -> float:
    """Milliseconds of a token of the stock model; with a static cache and torch.compile on a GPU, as it is on a CPU."""
    at = run.sizes.scale.stock
    return compiled_ms(run.model, at)[0] if run.model.device.type == "cuda" else eager_ms(run.model, at)


@dataclass
class Recordings:
    """Seconds of every CUDA graph that is recorded inside `counted`."""

    seconds: list[float] = field(default_factory=list)

    @contextmanager
    def counted(self) -> Iterator[None]:
        """Count inside the block."""
        own, graph = self, torch.cuda.graph

        class Counted(graph):  # type: ignore[misc, valid-type]
            def __enter__(self) -> Any:
                self._begun = perf_counter()
                return super().__enter__()

            def __exit__(self, *args: Any) -> Any:
                ended = super().__exit__(*args)
                own.seconds.append(perf_counter() - self._begun)
                return ended

        with mock.patch.object(torch.cuda, "graph", Counted):
            yield
