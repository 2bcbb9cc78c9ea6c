"""Reading a few tokens through a model with a method, as the self-checks do: what is handed to it, and its forward."""

from __future__ import annotations

from typing import Any

import torch

from ..cache.recurrent import takes_positions
from ..upstream.caches import given_cache
from .around import after_forward, begin


def handed_to(decoder: Any, start: int, length: int, cache: Any) -> dict[str, Any]:
    """The arguments of a decoder's forward for `length` tokens from `start` on; without a cache it makes its own."""
    where = decoder.get_input_embeddings().weight.device
    device = "cpu" if where.type == "meta" else where  # offloaded: accelerate moves them on
    pos = torch.arange(start, start + length, device=device)[None]
    kwargs: dict[str, Any] = {"input_ids": pos % decoder.config.vocab_size, "use_cache": True}
    if takes_positions(decoder):  # as `generate` gives them
        kwargs["position_ids"] = pos
    return kwargs if cache is None else kwargs | given_cache(decoder, cache)


def forward(decoder: Any, kwargs: dict[str, Any]) -> Any:
    """The decoder's output, without the hooks that other code has put on it."""
    begin(decoder, (), kwargs)
    try:
        return decoder.forward(**kwargs)
    finally:
        after_forward(decoder, (), None)
