"""The attention of one token over very many keys, in one layer of 8B geometry, beside torch over all of them."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import replace
from typing import Any

import torch
import torch.nn.functional as F
from transformers import DynamicCache, LlamaConfig

from hf_longctx import CodeLookup
from hf_longctx.evaluation.rows import row
from hf_longctx.generation.cuda_graph import can_replay, graph_forward
from hf_longctx.upstream.caches import given_cache
from recipes.bars import missed

from ..geometries import random_llama
from ..lookup_kernels import BARS
from ..timing import by_clock, kernels_us
from .run import Run
from .timed import EAGER, behind

Rows = Iterator[dict[str, Any]]
NARROW = {"hidden_size": 128, "intermediate_size": 128, "vocab_size": 512, "num_hidden_layers": 1}  # beside attention


@torch.no_grad()
def attention(run: Run) -> Rows:
    """Kernels of a step of a model whose one layer has heads as in 8B, and else next to nothing."""
    scale, device = run.sizes.scale, run.model.device.type
    heads = {name: getattr(scale.config, name) for name in ("num_attention_heads", "num_key_value_heads", "head_dim")}
    config = LlamaConfig(**NARROW, **heads, max_position_embeddings=scale.config.max_position_embeddings)
    dtype = torch.bfloat16 if device == "cuda" else torch.float32
    small = replace(run, model=random_llama(config, device, dtype))
    method = CodeLookup(n_local=scale.window, top_k=scale.chosen)
    rest = _step_us(small, DynamicCache(config=config), 0)[0]
    for keys in scale.attended:
        with behind(small, method, keys) as reader:
            whole, replays = _step_us(small, reader.cache, keys)
            del reader
        run.free()
        stock = _sdpa_us(config, keys, device, dtype)
        ours = max(whole - rest, 0.0) or whole
        bar = BARS.get(keys)
        beside = {"torch, all keys, µs": stock, "hf_longctx, µs": ours, "the layer without attention, µs": rest}
        what = f"attention of one token, {keys:,} keys, 8B geometry, window {scale.window:,} and {scale.chosen} chosen"
        yield row(f"{what}: times faster than torch's over all keys", stock / ours, "x", bar=bar, beside=beside,
                  why=missed(stock / ours, bar, "unpacking codes and choosing" if replays else EAGER),
                  detail={"from a CUDA graph": replays})  # fmt: skip


def _step_us(run: Run, cache: Any, at: int) -> tuple[float, bool]:
    """Microseconds of the kernels of a step, those of what is beside attention included; does a graph replay it?"""
    model, device = run.model, run.model.device.type
    replays = can_replay(model, cache)
    step, ids, n = graph_forward(model) if replays else model, torch.full((1, 1), 50, device=device), at

    def work() -> None:
        nonlocal n
        pos, n = torch.full((1, 1), n, device=device), n + 1
        step(input_ids=ids, position_ids=pos, **given_cache(model, cache), use_cache=True)

    return _us(work, device), replays


def _sdpa_us(config: Any, keys: int, device: str, dtype: torch.dtype) -> float:
    shape = 1, config.num_key_value_heads, keys, config.head_dim
    k, v = torch.randn(2, *shape, device=device, dtype=dtype).unbind()
    q = torch.randn(1, config.num_attention_heads, 1, config.head_dim, device=device, dtype=dtype)
    return _us(lambda: F.scaled_dot_product_attention(q, k, v, enable_gqa=True), device)


def _us(work: Callable[[], Any], device: str) -> float:
    return kernels_us(work) if device == "cuda" else by_clock(work) * 1e3
