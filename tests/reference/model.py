"""A whole model with LM-Infinite attention by brute force: only the attention function is replaced, pair by pair."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor
from transformers.masking_utils import ALL_MASK_ATTENTION_FUNCTIONS
from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS

from tests.reference.lm_infinite import attention_all_pairs, inverse_frequencies, rotated

NAME = "brute_force"


@contextmanager
def lm_infinite_by_brute_force(
    model: Any, n_global: int, n_local: int, top_k: int = 0, top_k_from_layer: int = 4
) -> Iterator[Any]:
    """Inside the block `model`, a stock model, runs LM-Infinite. One document a row, no padding, no cache.

    transformers hands over rotated queries and keys; they are turned back by their positions first. Sliding-window
    layers keep true distances within their window, which is LM-Infinite with no first tokens.
    """

    def attention(
        module: Any, query: Tensor, key: Tensor, value: Tensor, mask: Any, scaling: float, **kwargs: Any
    ) -> tuple[Tensor, None]:
        assert mask is None
        config, D = module.config, query.shape[-1]
        kind = config.layer_types[module.layer_idx] if getattr(config, "layer_types", None) else "full_attention"
        rope = config.rope_parameters.get(kind, config.rope_parameters)
        inv_freq = inverse_frequencies(rope["rope_theta"], D)
        settings = {"n_global": n_global, "n_local": n_local, "top_k": top_k}
        if kind == "sliding_attention":
            settings = {"n_global": 0, "n_local": config.sliding_window}
        elif module.layer_idx < top_k_from_layer:
            settings["top_k"] = 0
        group = query.shape[1] // key.shape[1]
        heads = []
        for b in range(len(query)):
            for h in range(query.shape[1]):
                q, k = (turned_back(x.double(), inv_freq) for x in (query[b, h], key[b, h // group]))
                q = q * (scaling * D**0.5)  # the reference divides by sqrt(D)
                heads.append(attention_all_pairs(q, k, value[b, h // group].double(), inv_freq, **settings))
        out = torch.stack(heads).unflatten(0, query.shape[:2])
        return out.transpose(1, 2).to(query.dtype), None

    before = model.config._attn_implementation
    ALL_ATTENTION_FUNCTIONS[NAME] = attention
    ALL_MASK_ATTENTION_FUNCTIONS[NAME] = lambda *args, **kwargs: None
    model.config._attn_implementation = NAME
    try:
        yield model
    finally:
        model.config._attn_implementation = before
        del ALL_ATTENTION_FUNCTIONS[NAME]
        del ALL_MASK_ATTENTION_FUNCTIONS[NAME]


def turned_back(x_LD: Tensor, inv_freq: Tensor) -> Tensor:
    return torch.stack([rotated(x, -position, inv_freq) for position, x in enumerate(x_LD)])
