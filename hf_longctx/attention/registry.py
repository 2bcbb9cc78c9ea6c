"""hf_longctx's entries in transformers' two registries: an attention function and the mask function for it."""

# B batch, L queries, S keys
from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn
from transformers import AttentionInterface
from transformers.masking_utils import AttentionMaskInterface, causal_mask_function

from ..settings import ATTENTION_NAMES, KEY
from .names import base_function, base_mask, is_unrotated


def attention(
    module: nn.Module,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Tensor | None,
    scaling: float | None = None,
    dropout: float = 0.0,
    longctx: Callable[..., tuple[Tensor, Tensor | None]] | None = None,
    **kwargs: Any,
) -> tuple[Tensor, Tensor | None]:
    """Attention with the signature that transformers calls.

    `longctx` computes it, usually a `LayerCall`; without one, in layers that were left alone, the base attention does.
    """
    if longctx is None:
        return base_function(module)(
            module, query, key, value, attention_mask, scaling=scaling, dropout=dropout, **kwargs
        )
    return longctx(module, query, key, value, scaling, dropout, kwargs)


def mask(*args: Any, **kwargs: Any) -> Tensor | None:
    """Which tokens are real, cached ones too: (B, 1, 1, S + L) bool, or None if all are.

    Everything else follows from positions. A mask may be longer than what has been read: that of a whole prompt comes
    with each of its chunks.

    Masks of sliding-window layers are made by the base attention, as in the model itself.
    """
    config: Any = kwargs["config"]
    if kwargs.get("local_size") is not None or not is_unrotated(config._attn_implementation):
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
for _name in (KEY, *ATTENTION_NAMES.values()):
    AttentionInterface.register(_name, attention)
    AttentionMaskInterface.register(_name, mask)
