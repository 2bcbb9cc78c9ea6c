"""MPT's table of ALiBi is as long as the text (entry 0011)."""

from __future__ import annotations

from typing import Any

from ..caches import cache_in


def as_long_as_the_text(
    stock: Any, layer: Any, hidden_states: Any, position_bias: Any, *args: Any, **kwargs: Any
) -> Any:
    """In the place of `MptAttention.forward`: a longer table where the model's is shorter than the keys.

    Only differences of distances count in a softmax, so the longer table agrees with the shorter one.
    """
    from transformers.models.mpt.modeling_mpt import build_mpt_alibi_tensor

    cache = cache_in(kwargs, args)
    keys = hidden_states.shape[1] + (0 if cache is None else cache.get_seq_length(layer.layer_idx))
    if position_bias is not None and keys > position_bias.shape[-1]:
        position_bias = build_mpt_alibi_tensor(layer.n_heads, keys, device=position_bias.device)
    return stock(layer, hidden_states, position_bias, *args, **kwargs)
