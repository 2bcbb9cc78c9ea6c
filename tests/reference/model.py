"""A whole model with a method's attention by brute force: only the attention function is replaced, pair by pair."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from typing import Any

import torch
from torch import Tensor
from transformers.masking_utils import ALL_MASK_ATTENTION_FUNCTIONS
from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS

from tests.reference.lm_infinite import attention_all_pairs
from tests.reference.lookup import attention_of_group, blocks_of_group
from tests.reference.rope import scaled
from tests.reference.streaming_llm import attention_of_one_head as streaming

NAME = "brute_force"


# (queries, keys, values, inverse frequencies, layer index) of one head, un-rotated, float64 -> its output
HeadAttention = Callable[[Tensor, Tensor, Tensor, Tensor, int], Tensor]
# the same of the query heads that share keys, (R, L, D), with the number of their group after the layer's
GroupAttention = Callable[[Tensor, Tensor, Tensor, Tensor, int, int], Tensor]


def by_brute_force(model: Any, method: Any) -> AbstractContextManager[Any]:
    """Inside the block `model`, a stock model, runs `method` as its paper writes it.

    Its config may be scaled: its frequencies are computed from `rope_parameters` here.
    """
    if method.name == "position_free":
        return lm_infinite_by_brute_force(model, n_global=0, n_local=1_000_000)
    if method.name == "streaming_llm":
        return _replaced(model, lambda q, k, v, f, _: streaming(q, k, v, f, method.n_sink, method.window))
    settings = method.spec()
    if method.name == "code_lookup":
        del settings["name"], settings["on_host"]
        settings["read_at"] = settings["read_at"] or settings["n_local"] // 2
        heads = settings.pop("heads")

        def looking_up(q: Tensor, k: Tensor, v: Tensor, inv_freq: Tensor, layer: int, g: int) -> Tensor:
            looking = [r for r in range(len(q)) if heads is None or [layer, g * len(q) + r] in heads]
            return attention_of_group(q, k, v, inv_freq, **settings, looking=looking)

        return _replaced(model, None, looking_up)
    if method.name == "infllm":
        del settings["name"]
        settings["read_at"] = settings["read_at"] or settings["n_local"] // 2
        return _replaced(model, None, lambda q, k, v, f, *_: blocks_of_group(q, k, v, f, **settings))
    names = ("n_global", "n_local", "top_k", "top_k_from_layer")
    return lm_infinite_by_brute_force(model, **{name: settings[name] for name in names})


def lm_infinite_by_brute_force(
    model: Any, n_global: int, n_local: int, top_k: int = 0, top_k_from_layer: int = 4
) -> AbstractContextManager[Any]:
    """Inside the block `model`, a stock model, runs LM-Infinite."""

    def head(q: Tensor, k: Tensor, v: Tensor, inv_freq: Tensor, layer: int) -> Tensor:
        return attention_all_pairs(q, k, v, inv_freq, n_global, n_local, top_k if layer >= top_k_from_layer else 0)

    return _replaced(model, head)


@contextmanager
def _replaced(model: Any, one_head: HeadAttention | None, one_group: GroupAttention | None = None) -> Iterator[Any]:
    """One document a row, no padding, no cache.

    The rotary embedding hands out (cos=1, sin=0), so queries and keys arrive as they were projected, and are rotated
    here by the published formulas. Sliding-window layers keep true distances within their window, which is LM-Infinite
    with no first tokens.
    """

    def attention(
        module: Any, query: Tensor, key: Tensor, value: Tensor, mask: Any, scaling: float, **kwargs: Any
    ) -> tuple[Tensor, None]:
        assert mask is None
        config, D = module.config, query.shape[-1]
        kind = config.layer_types[module.layer_idx] if getattr(config, "layer_types", None) else "full_attention"
        rope = config.rope_parameters.get(kind, config.rope_parameters)
        inv_freq, factor = scaled(rope, D) if getattr(module, "use_rope", True) else (torch.zeros(0), 1.0)
        group = query.shape[1] // key.shape[1]
        d = 2 * len(inv_freq)
        heads: list[Tensor] = []
        for b in range(len(query)):
            if one_group is not None and kind != "sliding_attention":
                for g in range(key.shape[1]):
                    q, k = query[b, g * group : (g + 1) * group].double(), key[b, g].double()
                    q, k = multiplied(q, factor, d) * (scaling * D**0.5), multiplied(k, factor, d)
                    heads.extend(one_group(q, k, value[b, g].double(), inv_freq, module.layer_idx, g))
                continue
            for h in range(query.shape[1]):
                q, k = (multiplied(x.double(), factor, d) for x in (query[b, h], key[b, h // group]))
                q = q * (scaling * D**0.5)  # the reference divides by sqrt(D)
                v = value[b, h // group].double()
                if kind == "sliding_attention":
                    heads.append(attention_all_pairs(q, k, v, inv_freq, n_global=0, n_local=config.sliding_window))
                else:
                    assert one_head is not None
                    heads.append(one_head(q, k, v, inv_freq, module.layer_idx))
        out = torch.stack(heads).unflatten(0, query.shape[:2])
        return out.transpose(1, 2).to(query.dtype), None

    def nowhere(self: Any, args: Any, embeddings: tuple[Tensor, Tensor]) -> tuple[Tensor, Tensor]:
        return torch.ones_like(embeddings[0]), torch.zeros_like(embeddings[1])

    before = model.config._attn_implementation
    ALL_ATTENTION_FUNCTIONS[NAME] = attention
    ALL_MASK_ATTENTION_FUNCTIONS[NAME] = lambda *args, **kwargs: None
    model.config._attn_implementation = NAME
    hook = model.base_model.rotary_emb.register_forward_hook(nowhere)
    try:
        yield model
    finally:
        hook.remove()
        model.config._attn_implementation = before
        del ALL_ATTENTION_FUNCTIONS[NAME]
        del ALL_MASK_ATTENTION_FUNCTIONS[NAME]


def multiplied(x_LD: Tensor, factor: float, d: int) -> Tensor:
    """The d rotated dims of a query or key times the scaling's factor."""
    return torch.cat([x_LD[..., :d] * factor, x_LD[..., d:]], -1)
