"""64k tokens read in chunks and 4,096 written under LMInfinite: memory, the cache's bytes, and time per token.

The first and the last tokens are written as every model call is, one kernel after the other; the tokens between come
from a CUDA graph of the same call, because thousands of them would take a quarter of an hour where launching is slow.
"""

from __future__ import annotations

import gc
import time
from collections.abc import Iterator
from itertools import pairwise
from statistics import median
from typing import Any

import torch
from torch import Tensor
from transformers import DynamicCache
from transformers.generation.streamers import BaseStreamer

from hf_longctx import LMInfinite
from hf_longctx.cache.stock import nbytes
from hf_longctx.evaluation.rows import row
from hf_longctx.upstream.caches import generate_cache, given_cache
from recipes.cards import free

from .wide_graph import Writer, recorded, steady_cache
from .wide_models import FULL, Geometry, Sizes

GIB = 2**30
PATIENCE = 100.0  # seconds of writing where no graph can be recorded
GENERATED = 16


class Clock(BaseStreamer):
    """When `generate` had each token."""

    def __init__(self) -> None:
        self.times: list[float] = []

    def put(self, value: Tensor) -> None:
        """Note the time: the token is on the host."""
        self.times.append(time.perf_counter())

    def end(self) -> None:
        """Nothing to do."""

    @property
    def milliseconds(self) -> float:
        """The median per token; the first ones compile, and record."""
        times = self.times[len(self.times) // 3 :]
        return median(b - a for a, b in pairwise(times)) * 1e3


def rows(model: Any, geometry: Geometry, sizes: Sizes, device: str) -> Iterator[dict[str, Any]]:
    """Everything that is read and written under the method, then the stock model with a cache as long."""
    ids = torch.randint(3, model.config.vocab_size, (1, sizes.read + 1), device=device)
    weights = _allocated(device)
    name, method = geometry.name, LMInfinite(n_global=sizes.n_global, n_local=sizes.n_local)
    with method.on(model), torch.no_grad():
        cache, held = steady_cache(model.config), {}
        _reset(device)
        start = time.perf_counter()
        chunk = geometry.chunk if sizes is FULL else sizes.early // 4
        for i, piece in enumerate(ids[:, :-1].split(chunk, dim=1), 1):
            model(piece, **given_cache(model, cache), use_cache=True, logits_to_keep=1)
            if i * chunk in (sizes.early, sizes.read):
                held[i * chunk] = nbytes(cache)
        _wait(device)
        seconds, peak = time.perf_counter() - start, _peak(device, weights)
        clock = Clock()
        written = _generate(model, cache, ids, clock)
        last = written[:, -1:].clone()
        writer = Writer(model, cache, last, torch.full_like(last, written.shape[1] - 1))
        done = written.shape[1] - ids.shape[1]
        # first, since a graph has memory of its own, the same however much is written
        writer, replay, count, why = _recorded(writer, device)
        done += count
        peaks, graph_ms = [], None
        for part in range(2):
            _reset(device)
            for _ in range(sizes.watched):
                writer.step()
            _wait(device)
            peaks.append(_peak(device, weights))
            done += sizes.watched
            if part == 0:
                count, graph_ms, why = _between(replay or writer.step, sizes.write - done - sizes.watched, device, why)
                graph_ms = graph_ms if replay else None
                done += count
        held[sizes.read + done] = nbytes(cache)
    what = f"{name}: tokens written after {sizes.read:,} read under LMInfinite"
    beside = {"prefill, s": seconds, "prefill, GiB above the weights": peak}
    yield row(what, done, "tokens", bar=f"== {sizes.write}", why=why, beside=beside)
    del writer, cache
    what = f"{name}: peak memory above the weights, the last {sizes.watched} tokens written over the first"
    beside = dict(zip(("first, GiB", "last, GiB"), peaks, strict=True))
    ratio = None if peaks[0] is None or peaks[1] is None else peaks[1] / peaks[0]
    why = None if ratio else "only a GPU counts its memory"
    yield row(what, ratio, "", bar="<= 1.01" if ratio else None, why=why, beside=beside)
    stock_bytes, stock_ms = _stock(model, ids)
    what = f"{name}: bytes of the cache after {sizes.read:,} tokens over those after {sizes.early:,}"
    beside = {"MiB": held[sizes.read] / 2**20, "stock, MiB": stock_bytes / 2**20}
    detail = {f"bytes after {n:,}": size for n, size in held.items()}
    yield row(what, held[sizes.read] / held[sizes.early], "", bar="<= 1.01", beside=beside, detail=detail)
    what = f"{name}: time per token of generate after {sizes.read:,} tokens, over stock"
    beside = {"LMInfinite, ms": clock.milliseconds, "stock, ms": stock_ms, "LMInfinite from a graph, ms": graph_ms}
    yield row(what, clock.milliseconds / stock_ms, "", beside=beside)


def _generate(model: Any, cache: Any, ids: Tensor, clock: Clock) -> Tensor:
    settings = {"max_new_tokens": GENERATED, "min_new_tokens": GENERATED, "do_sample": False, "streamer": clock}
    written: Tensor = model.generate(ids, **generate_cache(cache), **settings)
    return written


def _recorded(writer: Writer, device: str) -> tuple[Writer, Any, int, str | None]:
    """Who goes on, what replays a step, tokens written by that, and why nothing does."""
    if device == "cpu":
        return writer, None, 0, None
    replay, why, done = recorded(writer)
    if why is None:
        return writer, replay, done, None
    print(why, flush=True)
    return replay, None, 1, why  # a cache whose forward broke off is good for nothing


def _between(step: Any, count: int, device: str, why: str | None) -> tuple[int, float, str | None]:
    """Tokens written, milliseconds per token, and why they are fewer than `count`."""
    start, done = time.perf_counter(), 0
    while done < count and time.perf_counter() - start < PATIENCE:
        step()
        done += 1
    _wait(device)
    took = (time.perf_counter() - start) * 1e3 / max(done, 1)
    if done == count:
        return done, took, None
    return done, took, f"stopped after {PATIENCE:.0f} s{f', without a graph: {why}' if why else ''}"


def _stock(model: Any, ids: Tensor) -> tuple[int, float]:
    """Bytes of the stock cache and milliseconds per token. What its keys are matters for neither."""
    probe = DynamicCache(config=model.config)
    with torch.no_grad():
        model(ids[:, :2], **given_cache(model, probe), use_cache=True, logits_to_keep=1)
    cache = DynamicCache(config=model.config)
    for i, layer in enumerate(probe.layers):
        kept = (layer.keys, layer.values)
        keys, values = (x.new_empty(1, x.shape[1], ids.shape[1] - 1, x.shape[3]).normal_() for x in kept)
        cache.update(keys, values, i)
    size, clock = nbytes(cache), Clock()
    _generate(model, cache, ids, clock)
    return size, clock.milliseconds


def _wait(device: str) -> None:
    if device == "cuda":
        torch.cuda.synchronize()


def _allocated(device: str) -> int:
    gc.collect()
    return torch.cuda.memory_allocated() if device == "cuda" else 0


def _reset(device: str) -> None:
    if device == "cuda":
        free()
        torch.cuda.reset_peak_memory_stats()


def _peak(device: str, weights: int) -> float | None:
    """GiB above the weights since the last `_reset`."""
    return (torch.cuda.max_memory_allocated() - weights) / GIB if device == "cuda" else None
