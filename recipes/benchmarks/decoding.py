"""Milliseconds per token of greedy decoding: of any forward and cache, and of the stock model, eager and compiled."""

from __future__ import annotations

import time
from collections.abc import Callable
from statistics import median
from typing import Any

import torch
from transformers import DynamicCache, StaticCache

from hf_longctx.upstream.caches import given_cache

from .timing import synchronize

DEVICE = "cuda"


@torch.no_grad()
def tokens_ms(
    step: Callable[..., Any], cache: Any, at: int, count: int = 40, warm: int = 8, device: str = DEVICE
) -> float:
    """Median milliseconds per token of greedy decoding, by the clock: a user's waiting time."""
    ids = torch.full((1, 1), 50, device=device)
    times = []
    for i in range(count):
        synchronize(device)
        start = time.perf_counter()
        pos = torch.full((1, 1), at + i, device=device)
        # a graph's output is overwritten by the next replay
        logits = step(input_ids=ids, position_ids=pos, **given_cache(step, cache), use_cache=True).logits
        ids = logits[:, -1:].argmax(-1)
        synchronize(device)
        times.append((time.perf_counter() - start) * 1e3)
    return median(times[warm:])


def eager_ms(model: Any, context: int) -> float:
    """Stock, with the cache that grows by concatenation. What its keys are does not matter for the time."""
    cache = DynamicCache(config=model.config)
    shape, device = (1, model.config.num_key_value_heads, context, model.config.head_dim), model.device
    for layer in range(model.config.num_hidden_layers):
        cache.update(*torch.randn(2, *shape, device=device, dtype=model.dtype).unbind(), layer)
    return tokens_ms(model, cache, context, count=16, warm=4, device=device.type)


def compiled_ms(model: Any, context: int) -> tuple[float, float]:
    """Stock, with a static cache and torch.compile(mode="reduce-overhead"); and the seconds until its first tokens."""
    cache = StaticCache(config=model.config, max_cache_len=context + 64)
    with torch.no_grad():
        model(torch.full((1, 2), 50, device=DEVICE), **given_cache(model, cache), use_cache=True)
    for layer in cache.layers:
        layer.keys.normal_()
        layer.values.normal_()
        layer.cumulative_length.fill_(context)
    torch._dynamo.reset()
    step = torch.compile(model.forward, mode="reduce-overhead", fullgraph=True)

    def marked(**inputs: Any) -> Any:
        torch.compiler.cudagraph_mark_step_begin()
        return step(**inputs)

    start = time.perf_counter()
    tokens_ms(marked, cache, context, count=4, warm=0)
    seconds = time.perf_counter() - start
    found = tokens_ms(marked, cache, context + 4)
    torch._dynamo.reset()
    return found, seconds
