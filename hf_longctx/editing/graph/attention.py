"""The attention function of transformers' interface for a recorded edit: a few tokens attend from any places."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from torch import Tensor
from transformers import AttentionInterface

from ...attention.names import Named
from ...ops import scattered
from ...settings import KEY


class ScatteredAttention(Named):
    """The name of attention from `places`, which it carries."""

    NAME = f"{KEY}_scattered"
    places: scattered.Places


@contextmanager
def attending_from(decoder: Any, places: scattered.Places) -> Iterator[None]:
    """Inside, the decoder's layers attend from `places`. For one row of tokens."""
    config = vars(decoder.config)
    before = config["_attn_implementation_internal"]
    name = config["_attn_implementation_internal"] = ScatteredAttention(before)
    name.places = places
    try:
        yield
    finally:
        config["_attn_implementation_internal"] = before


def attention(
    module: Any, query: Tensor, key: Tensor, value: Tensor, attention_mask: Tensor | None, scaling: float, **kwargs: Any
) -> tuple[Tensor, None]:
    """Attention with the signature that transformers calls."""
    if attention_mask is not None or kwargs.get("softcap") is not None or kwargs.get("s_aux") is not None:
        raise ValueError(f"{type(module).__name__}: it attends with more than queries, keys and values.")
    places = module.config._attn_implementation.places
    return scattered.attend(query[0], key[0], value[0], places, scaling)[None], None


# no mask function has this name, so transformers makes no mask
AttentionInterface.register(ScatteredAttention.NAME, attention)
