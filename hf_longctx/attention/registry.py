"""hf_longctx's entries in transformers' two registries: an attention function and the mask function for it."""

# B batch, H query heads, G key/value heads, L queries, S keys, D head dim
from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from transformers import AttentionInterface
from transformers.masking_utils import AttentionMaskInterface, causal_mask_function

from ..cache.slots import KeyValues
from ..settings import KEY
from .base_attention import checked
from .inputs import AttentionInputs
from .names import Implementation, base_function, base_mask
from .state import LayerCall


def attention(
    module: nn.Module,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Tensor | None,
    scaling: float | None = None,
    dropout: float = 0.0,
    longctx: LayerCall | None = None,
    **kwargs: Any,
) -> tuple[Tensor, Tensor | None]:
    """Attention with the signature that transformers calls. Layers that were left alone get their base attention."""
    if longctx is None:
        return base_function(module)(
            module, query, key, value, attention_mask, scaling=scaling, dropout=dropout, **kwargs
        )
    decoder, step, layer = longctx
    query, scale = checked(module, query, scaling, dropout, kwargs)
    sinks, pos, padded, layout = None, None, step.padded, None
    if layer is not None:
        sinks, pos, padded, layout = layer.sinks, layer.readable_pos, padded or layer.padded, layer.layout
        if layer.joined and sinks is not None:
            # what the model made of the sinks, which came before all others
            n = len(sinks)
            sinks = KeyValues(key[:, :, :n], value[:, :, :n], sinks.pos)
            key, value = key[:, :, n:], value[:, :, n:]
    inputs = AttentionInputs(
        module=module,
        decoder=decoder,
        step=step,
        q_BHLD=query,
        keys=KeyValues(key, value, step.q_pos_BL if pos is None else pos),
        sinks=sinks,
        padded=padded,
        layout=layout,
        nothing_cached=key.shape[2] == query.shape[2],
        scale=scale,
    )
    return decoder.method.attention(inputs).contiguous(), None


def mask(*args: Any, **kwargs: Any) -> Tensor | None:
    """Which tokens are real, cached ones too: (B, 1, 1, S + L) bool, or None if all are.

    Everything else follows from positions. A mask may be longer than what has been read: that of a whole prompt comes
    with each of its chunks.

    Masks of sliding-window layers are made by the base attention, as in the model itself.
    """
    config: Any = kwargs["config"]
    if kwargs.get("local_size") is not None or not isinstance(config._attn_implementation, Implementation):
        return base_mask(*args, **kwargs)
    if kwargs.get("mask_function", causal_mask_function) is not causal_mask_function and not _tracing():
        raise ValueError(
            "packed sequences (position_ids that start again within a row) and custom masks are not supported by "
            "attention methods of hf_longctx. Pass one document per row, padded, with its attention_mask."
        )
    padding = kwargs.get("attention_mask")
    if padding is not None and padding.shape[-1] < kwargs.get("kv_length", 0) and not _tracing():
        raise ValueError(
            f"attention_mask of shape {tuple(padding.shape)}: {kwargs['kv_length']} tokens were read, these included. "
            f"Pass a mask (batch, tokens read so far) of ones and zeros, or none."
        )
    if padding is None or (not _tracing() and bool(padding.all())):
        return None
    length = kwargs.get("kv_length") or padding.shape[-1]
    return padding[:, None, None, :length].bool()


def _tracing() -> bool:
    return torch.compiler.is_compiling()


# in the place of the stand-ins of startup.py
AttentionInterface.register(KEY, attention)
AttentionMaskInterface.register(KEY, mask)
