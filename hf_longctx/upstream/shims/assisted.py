"""Assisted decoding that continues from a filled cache is refused (entry 0017)."""

from __future__ import annotations

from typing import Any

from ..caches import cache_in


def from_an_empty_cache(stock: Any, model: Any, *args: Any, **kwargs: Any) -> Any:
    """In the place of `GenerationMixin._assisted_decoding`.

    Raises:
        ValueError: The cache holds tokens.
    """
    cache = cache_in(kwargs)
    held = 0 if cache is None else cache.get_seq_length()
    if held:
        raise ValueError(
            f"assisted decoding (an assistant model or prompt_lookup_num_tokens) with a cache of {held} tokens: "
            f"expected an empty one, since transformers writes other tokens. Leave it out, or start without a cache."
        )
    return stock(model, *args, **kwargs)
