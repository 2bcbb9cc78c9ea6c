"""A model of 8B geometry with its keys in host memory: the first token, the next ones, and what stays on the device."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass, field, replace
from time import perf_counter
from typing import Any

import torch

from hf_longctx import CodeLookup, LMInfinite, stream
from hf_longctx.evaluation.rows import row
from recipes.bars import missed

from ..geometries import random_llama
from ..timing import synchronize
from . import host_time
from .run import Run
from .timed import SEED, token_ms

Rows = Iterator[dict[str, Any]]
GIB = 2**30


@dataclass
class Measured:
    """A text that was read to its end, and the tokens after it.

    Args:
        first: Seconds to the first token.
        token: Milliseconds of a later one.
        replays: Do these come from a CUDA graph?
        held: Bytes on the device after reading, above the weights.
        peaks: The most of them while so many tokens were read.
        where: Where the time went: chunks by the clock, and of keys on the host what was pinned, copied and read.
    """

    first: float
    token: float
    replays: bool
    held: int
    peaks: dict[int, int] = field(default_factory=dict)
    where: dict[str, Any] = field(default_factory=dict)


def large(run: Run) -> Rows:
    """Keys on the host, beside the same on the device and LM-Infinite."""
    scale, device = run.sizes.scale, run.model.device.type
    model = random_llama(scale.config, device, torch.bfloat16 if device == "cuda" else torch.float32)
    big = replace(run, model=model)
    methods: dict[str, Callable[[], Any]] = {
        "host": lambda: CodeLookup(n_local=scale.window, on_host=True),
        "device": lambda: CodeLookup(n_local=scale.window),
        "LM-Infinite": lambda: LMInfinite(n_local=scale.window),
    }
    found, refused = {}, {}
    for name, make in methods.items():
        try:
            found[name] = _measured(big, make())
        except ValueError as error:  # keys on the host: without a GPU, without memory for them, or not at all
            refused[name] = f"not available: {error}"
        except torch.OutOfMemoryError as error:
            refused[name] = f"not enough memory: {str(error).splitlines()[0]}"
        run.free()
    yield from _rows(big, found, refused)


def _rows(run: Run, found: dict[str, Measured], refused: dict[str, str]) -> Rows:
    scale, config = run.sizes.scale, run.model.config
    host, device, window = (found.get(name) for name in ("host", "device", "LM-Infinite"))
    head = config.head_dim * config.num_key_value_heads * config.num_hidden_layers
    every = 2 * head * run.model.dtype.itemsize * scale.large
    said = f"8B geometry, {scale.large:,} tokens, keys on the host"
    beside: dict[str, float | None] = {f"{name}, s": one.first for name, one in found.items() if name != "host"}
    for n in (scale.flat, scale.large):
        beside |= {f"device GiB above the weights, {n:,} tokens": host.peaks[n] / GIB if host else None}
    lost = " ".join(dict.fromkeys(refused.values()))
    detail = {name: vars(one) for name, one in found.items()}
    first = host.first if host else None
    yield row(f"{said}: seconds to the first token", first, "s", bar="<= 30", beside=beside, detail=detail,
              why=missed(first, "<= 30", lost or "keys of every chunk are copied to the host"))  # fmt: skip
    times = {f"{name}, ms": one.token for name, one in found.items()}
    over = host.token / window.token if host and window else None
    yield row(f"{said}: time of a token over LM-Infinite's", over, "x", bar="<= 1.35", beside=times,
              why=missed(over, "<= 1.35", lost or "codes, and keys over PCIe"))  # fmt: skip
    over = host.token / device.token if host and device else None
    yield row(f"{said}: time of a token over that with keys on the device", over, "x", bar="<= 1.3", beside=times,
              why=missed(over, "<= 1.3", lost or "keys over PCIe"))  # fmt: skip
    over = host.held / every if host else None
    sizes = {f"{name}, GiB": one.held / GIB for name, one in found.items()} | {"all keys and values, GiB": every / GIB}
    yield row(f"{said}: bytes on the device above the weights, over all keys and values", over, "", bar="<= 0.07",
              beside=sizes, why=missed(over, "<= 0.07", lost or "codes, windows and buffers"))  # fmt: skip


@torch.no_grad()
def _measured(run: Run, method: Any) -> Measured:
    scale, device = run.sizes.scale, run.model.device.type
    peaks: dict[int, int] = {}
    ids_L = run.texts.make(scale.large, SEED) % run.model.config.vocab_size
    look_up = {"look_up": False} if method.looks_up else {}
    with method.on(run.model):  # compiles kernels
        stream(run.model, ids_L[: 2 * run.sizes.chunk], chunk=run.sizes.chunk, bounded=False, **look_up).read(
            ids_L[: scale.asked]
        )
    run.free()
    weights = _allocated(device)
    if device == "cuda":
        torch.cuda.reset_peak_memory_stats()

    def progress(n: int) -> None:
        clock(n)
        if not peaks and n >= scale.flat:
            peaks[scale.flat] = _peak(device) - weights

    with method.on(run.model), host_time.pinning() as pinned:
        clock = host_time.Clock()
        start = perf_counter()
        reader = stream(
            run.model, ids_L[: -scale.asked], chunk=run.sizes.chunk, bounded=False, progress=progress, **look_up
        )
        where: dict[str, Any] = {"launched by, s": perf_counter() - start}
        synchronize(device)
        where |= {"text read after, s": perf_counter() - start}
        reader.read(ids_L[-scale.asked :])
        synchronize(device)
        where |= {"with look-ups after, s": perf_counter() - start, "chunks": clock.told()}
        next(reader.generate(max_new_tokens=1, do_sample=False))
        synchronize(device)
        first = perf_counter() - start
        peaks[scale.large] = _peak(device) - weights
        held = _allocated(device) - weights
        reader.take_back()
        token, replays = token_ms(run, reader)
        where |= {"a token": host_time.of_a_token(run, reader, method)} if method.looks_up else {}
        if getattr(method, "on_host", False):
            where |= {"a chunk": host_time.of_a_chunk(run, reader)}
    where |= {"pinned": pinned} if getattr(method, "on_host", False) else {}
    return Measured(first, token, replays, held, peaks, where)


def _allocated(device: str) -> int:
    return torch.cuda.memory_allocated() if device == "cuda" else 0


def _peak(device: str) -> int:
    return torch.cuda.max_memory_allocated() if device == "cuda" else 0
