"""What it costs beside others: a token after a long text, recordings of its step, reading, and beams."""

from __future__ import annotations

import copy
from collections.abc import Iterator
from time import perf_counter
from typing import Any

import torch

from hf_longctx.cache.stock import nbytes
from hf_longctx.evaluation.rows import row
from hf_longctx.generation.cuda_graph import can_replay
from hf_longctx.upstream.caches import given_cache
from recipes.bars import missed

from ..timing import synchronize
from .run import Run
from .timed import EAGER, SEED, Recordings, behind, parts_of_a_token, reading_of, stock_ms, token_ms

Rows = Iterator[dict[str, Any]]
BEAMS = 4
HEADS = "codes, heads that retrieve"


def decoding(run: Run) -> Rows:
    """A token after a text that is far longer than the window, over LM-Infinite's and over the stock model's."""
    scale = run.sizes.scale
    found, replayed, parts = {}, {}, {}
    methods = {"LM-Infinite": run.window, "codes": run.lookup, "all keys": run.keys}
    none_retrieves = None
    try:
        methods[HEADS] = run.retrieving
    except ValueError as error:
        none_retrieves = str(error)
    for name, method in methods.items():
        with behind(run, method, scale.far) as reader:
            found[name], replayed[name] = token_ms(run, reader)
            parts[name] = parts_of_a_token(run, reader)
            del reader
        run.free()
    stock = stock_ms(run)
    kind = "static cache, torch.compile" if run.model.device.type == "cuda" else "eager"
    beside = {f"{name}, ms": ms for name, ms in found.items()} | {f"stock, {kind}, {scale.stock:,} tokens, ms": stock}
    detail = {"from a CUDA graph": replayed, "window": run.window.n_local, "a token": parts}
    why = "codes and chosen keys take longer to read" if replayed["codes"] else EAGER
    after = f"decoding after {scale.far:,} tokens"
    for what, value, bar in (
        (f"{after}: time of a token over LM-Infinite's", found["codes"] / found["LM-Infinite"], "<= 1.3"),
        (f"{after}: times faster than the stock model after {scale.stock:,}", stock / found["codes"], ">= 3.5"),
    ):
        yield row(what, value, "x", bar=bar, why=missed(value, bar, why), beside=beside, detail=detail)
    ratio = found[HEADS] / found["LM-Infinite"] if HEADS in found else None
    heads = [] if ratio is None else run.retrieving.heads or []
    share = {"heads that retrieve": len(heads), "layers that look up": len({layer for layer, _ in heads})}
    yield row(f"{after}, gate='heads': time of a token over LM-Infinite's", ratio, "x", why=none_retrieves,
              beside=beside | share, detail=detail)  # fmt: skip


def recordings(run: Run) -> Rows:
    """How often a step is recorded while thousands of tokens are written, and how long that takes."""
    scale, counted = run.sizes.scale, Recordings()
    with behind(run, run.lookup, scale.far) as reader, counted.counted():
        start = perf_counter()
        no_end = run.model.config.vocab_size  # no token has this id, so that nothing ends early
        # without graphs a few tokens show as much
        count = scale.written if can_replay(run.model, reader.cache) else scale.steps[0]
        for _ in reader.generate(max_new_tokens=count, do_sample=False, eos_token_id=no_end):
            pass
        synchronize(run.model.device.type)
        seconds = perf_counter() - start
        written = reader.position - scale.far
        del reader
    run.free()
    n, longest = len(counted.seconds), max(counted.seconds, default=None)
    why = EAGER if not n else "the store outgrew what was recorded"
    what = f"CUDA graphs recorded while {scale.written:,} tokens are written after {scale.far:,}"
    detail = {"tokens written": written, "seconds": seconds, "seconds of recordings": counted.seconds}
    yield row(what, n, "", bar="== 1", why=missed(n, "== 1", why), detail=detail)
    why = EAGER if not n else "a forward pass of Python takes so long"
    what = f"seconds to record a CUDA graph of a step after {scale.far:,} tokens"
    yield row(what, longest, "s", bar="<= 0.2", why=missed(longest, "<= 0.2", why))


@torch.no_grad()
def reading(run: Run) -> Rows:
    """Reading a long text whose last tokens look up, over reading it under LM-Infinite."""
    scale, found, steps = run.sizes.scale, {}, {}
    for name, method in (("LM-Infinite", run.window), ("codes", run.lookup), ("all keys", run.keys)):
        with behind(run, method, 2 * run.sizes.chunk) as reader:  # compiles kernels
            reader.read(run.texts.make(reader.chunk, SEED), look_up=not method.looks_up)
        found[name] = min(_read(run, method) for _ in range(2))
        with behind(run, method, scale.far - scale.asked) as reader:
            steps[f"{name}, a chunk"] = reading_of(run, reader, reader.chunk, not method.looks_up)
            steps[f"{name}, the last"] = reading_of(run, reader, scale.asked, True)
            del reader
        run.free()
    ratio = found["codes"] / found["LM-Infinite"]
    what = f"reading {scale.far:,} tokens, of which the last {scale.asked} look up: time over LM-Infinite's"
    beside = {f"{name}, s": one for name, one in found.items()}
    yield row(what, ratio, "x", bar="<= 1.10", why=missed(ratio, "<= 1.10", "codes and the store take time"),
              beside=beside, detail={"the better of two": found} | steps)  # fmt: skip


def _read(run: Run, method: Any) -> float:
    """Seconds."""
    scale, last = run.sizes.scale, run.texts.make(run.sizes.scale.asked, SEED + 1)
    run.free()
    start = perf_counter()
    with behind(run, method, scale.far - scale.asked) as reader:
        reader.read(last)
        synchronize(run.model.device.type)
        return perf_counter() - start


@torch.no_grad()
def beams(run: Run) -> Rows:
    """Bytes of four beams that continue one long text, over those of one."""
    length = run.sizes.scale.beams
    with behind(run, run.lookup, length) as reader:
        cache = copy.deepcopy(reader.cache)
        one = nbytes(cache)
        cache.batch_repeat_interleave(BEAMS)
        order = [torch.tensor(rows, device=run.model.device) for rows in ([0, 0, 1, 3], [1, 1, 0, 2])]
        for step, rows in enumerate(order):
            # what `generate` does with a cache between two tokens of its beams
            ids = torch.full((BEAMS, 1), 50, device=run.model.device)
            pos = torch.full((BEAMS, 1), length + step, device=run.model.device)
            run.model(input_ids=ids, position_ids=pos, **given_cache(run.model, cache), use_cache=True)
            cache.reorder_cache(rows)
        several = nbytes(cache)
        stores = sum(layer.everything.nbytes() for layer in cache.layers)
        del reader, cache
    run.free()
    ratio = several / one
    beside = {"one beam, GiB": one / 2**30, f"{BEAMS} beams, GiB": several / 2**30}
    beside |= {f"of these the store of {BEAMS}, GiB": stores / 2**30}
    why = "every beam has a window of its own, and the piece of the store that still grows"
    yield row(f"{BEAMS} beams after {length:,} tokens: bytes over those of one", ratio, "x", bar="<= 1.02",
              why=missed(ratio, "<= 1.02", why), beside=beside)  # fmt: skip
