"""Where the time goes that keys in host memory take: memory that is pinned, copies to it, reading it, waits."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from statistics import median
from time import perf_counter
from typing import Any

import torch

from hf_longctx.attention.without import without_look_ups
from hf_longctx.ops.pinned import POOL, Pinning
from hf_longctx.upstream.caches import given_cache

from ..timing import covered, on_device
from .run import Run
from .timed import SEED, step_of

GIB = 2**30
Spans = Sequence[tuple[str, float, float]]  # names of what a device did, when each began and ended, in µs
MORE = 2  # tokens that `of_a_token` writes
READING = ("_shortlist", "_found", "_gather")  # kernels that read keys or values where they lie


class Clock:
    """When each chunk was read, on the host; to be called with the position reached."""

    def __init__(self) -> None:
        self.times = [perf_counter()]

    def __call__(self, position: int) -> None:
        self.times.append(perf_counter())

    def told(self) -> dict[str, Any]:
        """Seconds of the first chunks, of one in the middle, and of the longest."""
        took = [after - before for before, after in zip(self.times, self.times[1:], strict=False)]
        if not took:
            return {}
        return {"first three, s": took[:3], "median, s": median(took), "longest, s": max(took), "chunks": len(took)}


@contextmanager
def pinning() -> Iterator[dict[str, Any]]:
    """What is pinned inside, in the dict that it gives once it is over."""
    before, found = POOL.seen, dict[str, Any]()
    POOL.seen = seen = Pinning()
    try:
        yield found
    finally:
        POOL.seen = before
        found |= told(seen)


def told(seen: Pinning) -> dict[str, Any]:
    """The same in words."""
    each = {"found": seen.touching, "registered": seen.registering}
    speeds = {f"{what}, GiB/s of a thread": seen.made / GIB / s for what, s in each.items() if s}
    return {
        "made by threads, GiB": seen.made / GIB,
        **{f"{what}, s of all threads": s for what, s in each.items()},
        **speeds,
        "of an earlier text, GiB": seen.again / GIB,
        "waits": seen.waits,
        "waited, s": seen.waited,
        "longest wait, s": seen.longest,
        "pieces that torch pinned": seen.torchs,
        "torch pinned, s": seen.torchs_seconds,
    }


@torch.no_grad()
def of_a_chunk(run: Run, reader: Any) -> dict[str, Any]:
    """Of one chunk more that is read without look-ups: how fast its keys and values go to the host, and beside what.

    It stands behind the tokens of `of_a_token`, of which the reader does not know.
    """
    ids_L = run.texts.make(run.sizes.chunk, SEED + 3) % run.model.config.vocab_size
    first = reader.position + run.sizes.scale.steps[0] + MORE
    given = {"input_ids": ids_L[None], "position_ids": torch.arange(first, first + len(ids_L))[None]}
    given = {name: x.to(run.model.device) for name, x in given.items()}

    def read() -> None:
        run.model(**given, **given_cache(run.model, reader.cache), use_cache=True, logits_to_keep=1)

    try:
        with without_look_ups(run.model):
            spans = seen_on_device(read)
    except ValueError as error:  # the host has no memory left
        return {"not read": str(error)}
    return copies(spans, _bytes_of(run, len(ids_L)))


@torch.no_grad()
def of_a_token(run: Run, reader: Any, method: Any) -> dict[str, Any]:
    """Of one token: how fast kernels read the keys of shortlists, and the time of each kernel that reads by address."""
    config = run.model.config
    work = step_of(run.model, reader.cache, reader.position + run.sizes.scale.steps[0])[0]
    work()
    return reads(seen_on_device(work), method.shortlist * _bytes_of(run, 1) // 2, config.num_hidden_layers)


def _bytes_of(run: Run, tokens: int) -> int:
    """Keys and values of so many tokens in all layers."""
    config = run.model.config
    return (
        tokens * 2 * config.head_dim * config.num_key_value_heads * config.num_hidden_layers * run.model.dtype.itemsize
    )


def seen_on_device(work: Callable[[], Any]) -> Spans:
    """What a profiler sees of one call; nothing without a GPU."""
    if not torch.cuda.is_available():
        work()
        return []
    return on_device(work)


def copies(spans: Spans, size: int) -> dict[str, Any]:
    """Copies from the device to the host, of so many bytes in all, beside everything else."""
    to_host = [(start, end) for name, start, end in spans if "DtoH" in name]
    others = [(start, end) for name, start, end in spans if "DtoH" not in name]
    if not to_host:
        return {}
    alone = covered([*to_host, *others]) - covered(others)
    return {
        "copies to the host": len(to_host),
        "copies, ms": covered(to_host) / 1e3,
        "copies, GiB/s": size / GIB / (covered(to_host) / 1e6),
        "while nothing else ran, ms": alone / 1e3,
        "all else, ms": covered(others) / 1e3,
    }


def reads(spans: Spans, size: int, layers: int) -> dict[str, Any]:
    """Kernels that read keys and values where they lie; of shortlists so many bytes in all, at most."""
    us = {name: covered((start, end) for kernel, start, end in spans if kernel.startswith(name)) for name in READING}
    found: dict[str, Any] = {f"{name}, µs a layer": time / layers for name, time in us.items() if time}
    if us["_shortlist"]:
        found["keys of shortlists, GiB/s"] = size / GIB / (us["_shortlist"] / 1e6)
    return found
