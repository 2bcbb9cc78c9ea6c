"""The attention of one token over very many keys, in a layer of 8B geometry, beside torch over all of them."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from transformers import DynamicCache, LlamaConfig

from hf_longctx import CodeLookup
from hf_longctx.evaluation.rows import row
from recipes.bars import missed

from ..geometries import random_llama
from ..lookup_kernels import BARS
from ..timing import Kernels, by_clock, kernels
from .run import Run
from .timed import EAGER, NAMED, behind, step_of

Rows = Iterator[dict[str, Any]]
SEED = 4000  # of the order in which tokens are read
NARROW = {"hidden_size": 128, "intermediate_size": 128, "vocab_size": 49152}
FEW, MANY = 1, 3  # layers of two models: what is once a forward is in both
NOISE = f"{MANY} layers took no longer than {FEW}: other work on this machine disturbed the times"


class Step(NamedTuple):
    """Microseconds of the kernels of a step: what each layer adds, and what is once a forward.

    Attributes:
        layer: Half of what a model of three layers takes more than one of one.
        forward: What that one takes besides.
        longest: Microseconds and launches of the kernels of the model of three that take most, by name.
        replays: Did they come from a CUDA graph?
    """

    layer: float
    forward: float
    longest: dict[str, str]
    replays: bool


@torch.no_grad()
def attention(run: Run) -> Rows:
    """Kernels of a step that a layer adds whose heads are as in 8B, in models that have else next to nothing."""
    scale, device = run.sizes.scale, run.model.device.type
    dtype = torch.bfloat16 if device == "cuda" else torch.float32
    heads = {name: getattr(scale.config, name) for name in ("num_attention_heads", "num_key_value_heads", "head_dim")}
    trained = scale.config.max_position_embeddings
    configs = [
        LlamaConfig(**NARROW, **heads, num_hidden_layers=n, max_position_embeddings=trained) for n in (FEW, MANY)
    ]
    most = max(scale.attended)
    models = [replace(run, model=_all_different(random_llama(config, device, dtype), most)) for config in configs]
    method = CodeLookup(n_local=scale.window, top_k=scale.chosen)
    rest = _step([_kernels(one, DynamicCache(config=one.model.config), 0) for one in models])
    for keys in scale.attended:
        step = _step([_behind(one, method, keys) for one in models])
        stock = _sdpa_us(configs[0], keys, device, dtype)
        ours = step.layer - rest.layer
        bar = BARS.get(keys)
        beside = {
            "torch, all keys, µs": stock, "hf_longctx, µs": ours, "the layer without attention, µs": rest.layer,
            "once a forward, µs": step.forward, "once a forward without the method, µs": rest.forward,
        }  # fmt: skip
        what = f"attention of one token, {keys:,} keys, 8B geometry, window {scale.window:,} and {scale.chosen} chosen"
        value = stock / ours if ours > 0 else None
        why = "unpacking codes and choosing" if step.replays else EAGER
        why = NOISE if value is None else missed(value, bar, why)
        detail = {"from a CUDA graph": step.replays, f"longest kernels of {MANY} layers": step.longest}
        yield row(f"{what}, what a layer adds: times faster than torch's over all keys", value, "x", bar=bar,
                  beside=beside, why=why, detail=detail)  # fmt: skip


def _all_different(model: Any, tokens: int) -> Any:
    """The model with so many tokens that it can read, and as many as before that it can write.

    Behind the first layer of a trained model each key depends on what stands before it. In so few random layers it
    follows from its token, of which a text of a million has some 20,000: then many keys have one score. And attention
    over a window is nearly the window's mean; beside small embeddings it counts more with each layer, and the best keys
    are neighbours. Of both, more tokens reach the bound of the best blocks: 11,000 to 33,000 of 131,072 in the third
    layer with a text's tokens, about 1,450 in any layer with these, whose embeddings are as large as a norm's output.
    """
    weight = model.get_input_embeddings().weight
    embedding = torch.nn.Embedding(tokens, weight.shape[1], device=weight.device, dtype=weight.dtype)  # normal, std 1
    model.set_input_embeddings(embedding.requires_grad_(False))
    return model


def _behind(run: Run, method: CodeLookup, keys: int) -> tuple[Kernels, bool]:
    """The kernels of a step after so many tokens, all of which are different."""
    ids_L = torch.randperm(keys, generator=torch.Generator().manual_seed(SEED))
    with behind(run, method, keys, ids_L) as reader:
        found = _kernels(run, reader.cache, keys)
        del reader
    run.free()
    return found


def _step(found: Sequence[tuple[Kernels, bool]]) -> Step:
    """The step of both models as parts."""
    (few, _), (many, replays) = found
    layer = (many.us - few.us) / (MANY - FEW)
    return Step(layer, few.us - FEW * layer, many.longest(NAMED), replays)


def _kernels(run: Run, cache: Any, at: int) -> tuple[Kernels, bool]:
    """The kernels of a step, those of what is beside attention included; does a graph replay it?"""
    work, replays = step_of(run.model, cache, at)
    return _seen(work, run.model.device.type), replays


def _sdpa_us(config: Any, keys: int, device: str, dtype: torch.dtype) -> float:
    shape = 1, config.num_key_value_heads, keys, config.head_dim
    k, v = torch.randn(2, *shape, device=device, dtype=dtype).unbind()
    q = torch.randn(1, config.num_attention_heads, 1, config.head_dim, device=device, dtype=dtype)
    return _seen(lambda: F.scaled_dot_product_attention(q, k, v, enable_gqa=True), device).us


def _seen(work: Callable[[], Any], device: str) -> Kernels:
    return kernels(work) if device == "cuda" else Kernels(by_clock(work) * 1e3, {})
