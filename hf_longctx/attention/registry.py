"""Our entries in transformers' two registries: the attention function and the mask function that go with it."""

# B batch, H query heads, G key/value heads, L queries, S keys, D head dim
from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from transformers import AttentionInterface
from transformers.masking_utils import ALL_MASK_ATTENTION_FUNCTIONS, AttentionMaskInterface, causal_mask_function

from ..cache.slots import KeyValues
from ..settings import KEY
from .base_attention import checked
from .inputs import AttentionInputs
from .names import Implementation
from .subclass import function_named


def attention(
    module: nn.Module,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Tensor | None,
    scaling: float | None = None,
    dropout: float = 0.0,
    longctx: Any = None,
    **kwargs: Any,
) -> tuple[Tensor, Tensor | None]:
    """transformers' attention signature. Layers that we left alone go to the implementation they had before."""
    if longctx is None:
        return inner_function(module)(
            module, query, key, value, attention_mask, scaling=scaling, dropout=dropout, **kwargs
        )
    decoder, step, layer = longctx
    query, scale = checked(module, query, scaling, dropout, kwargs)
    head, pos = (None, None) if layer is None else (layer.head, layer.readable_pos)
    if layer is not None and layer.joined and head is not None:
        # what the model made of the first tokens, which came before all others
        key, value, head = key[:, :, len(head) :], value[:, :, len(head) :], _head(head, key, value)
    inputs = AttentionInputs(
        module=module,
        decoder=decoder,
        step=step,
        q_BHLD=query,
        keys=KeyValues(key, value, step.q_pos_BL if pos is None else pos),
        sinks=head,
        padded=step.padded or (layer is not None and layer.padded),
        layout=type(layer).__name__,
        nothing_cached=key.shape[2] == query.shape[2],
        scale=scale,
    )
    return decoder.method.attention(inputs).contiguous(), None


def _head(head: KeyValues, key: Tensor, value: Tensor) -> KeyValues:
    return KeyValues(key[:, :, : len(head)], value[:, :, : len(head)], head.pos)


def mask(*args: Any, **kwargs: Any) -> Tensor | None:
    """Which tokens are real, cached ones too: (B, 1, 1, S + L) bool, or None if all are.

    Everything else follows from positions. A mask may be longer than what has been read: that of a whole prompt comes
    with each of its chunks.

    Masks of sliding-window layers are made by the inner implementation, as without us.
    """
    config: Any = kwargs["config"]
    if kwargs.get("local_size") is not None or not isinstance(config._attn_implementation, Implementation):
        return _inner_mask(config)(*args, **kwargs)
    if kwargs.get("mask_function", causal_mask_function) is not causal_mask_function and not _tracing():
        raise ValueError(
            "packed sequences (position_ids that start again within a row) and custom masks are not supported by "
            "attention methods of hf_longctx. Pass one document a row, padded, with its attention_mask."
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


def inner_function(module: nn.Module) -> Any:
    return function_named(_inner_name(module.config), module)


def _inner_mask(config: Any) -> Any:
    return ALL_MASK_ATTENTION_FUNCTIONS[_inner_name(config)]


def _inner_name(config: Any) -> str:
    name = config._attn_implementation
    if not isinstance(name, Implementation):
        raise ValueError(
            f"attn_implementation={name!r} is set by a method, and names no kernel. Choose 'sdpa' or another, and "
            f"apply the method to the model: hf_longctx.LMInfinite().apply(model)."
        )
    return name.inner


def _tracing() -> bool:
    return torch.compiler.is_compiling()


# in the place of the stand-ins of startup.py
AttentionInterface.register(KEY, attention)
AttentionMaskInterface.register(KEY, mask)
