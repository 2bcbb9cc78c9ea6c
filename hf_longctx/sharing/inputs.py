"""Checks of what the caller of a shared prefix gives: the prefix, the questions, settings of `generate`."""

# B batch, Q tokens of a question, P tokens of the prefix
from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from .layers import SharedCache

RESERVED = ("inputs", "inputs_embeds", "position_ids", "token_type_ids", "cache_implementation")


def prefix_ids(ids: Any, name: str) -> Tensor:
    """The token ids of a prefix, (P,)."""
    if not isinstance(ids, Tensor) or ids.is_floating_point() or ids.ndim not in (1, 2):
        given = f"{ids.dtype} of shape {tuple(ids.shape)}" if isinstance(ids, Tensor) else type(ids).__name__
        raise ValueError(f"{name}: {given}, expected a tensor of token ids of shape (tokens,) or (1, tokens).")
    if ids.ndim == 2 and len(ids) != 1:
        raise ValueError(f"{name} of shape {tuple(ids.shape)}: one prefix is shared by all rows. Give one row.")
    if not ids.numel():
        raise ValueError(f"{name} is empty: there is nothing to share. Give at least one token.")
    return ids.reshape(-1).long()


def check_chunk(chunk: int | None) -> None:
    """ValueError for a prefill chunk size that is none."""
    if chunk is not None and (type(chunk) is not int or chunk < 1):
        raise ValueError(f"chunk={chunk!r}: expected a number of tokens, at least 1, or None for all at once.")


def check_questions(ids: Any) -> None:
    """ValueError for anything but token ids (B, Q)."""
    if not isinstance(ids, Tensor) or ids.ndim != 2 or ids.is_floating_point():
        given = tuple(ids.shape) if isinstance(ids, Tensor) else type(ids).__name__
        raise ValueError(f"input_ids: {given}, expected token ids of shape (batch, tokens), a question per row.")
    if not ids.numel():
        raise ValueError(
            f"input_ids of shape {tuple(ids.shape)}: there is nothing in it. Give every row at least one token, or "
            f"leave input_ids out to continue from the prefix itself."
        )


def mask_of(ids: Tensor, mask: Tensor | None, pad: int | None) -> Tensor:
    """The attention mask of questions; all ones where there is none. ValueError where it is wrong or missing."""
    if mask is None:
        if pad is not None and len(ids) > 1 and bool((ids == pad).any()):
            raise ValueError(f"input_ids hold the padding token {pad}. Give the attention_mask that goes with it.")
        return torch.ones_like(ids)
    if mask.shape != ids.shape:
        raise ValueError(
            f"attention_mask of shape {tuple(mask.shape)}, expected that of input_ids, {tuple(ids.shape)}."
        )
    if not bool(mask[:, -1].all()):
        raise ValueError("attention_mask: a row ends in padding, or is all padding. Pad on the left.")
    return mask.to(ids.dtype)


def check_cache(cache: SharedCache, owner: Any, ids: Tensor) -> None:
    """ValueError unless `cache` is one of the prefix `owner`, and `ids` continue the conversation in it."""
    if not isinstance(cache, SharedCache) or cache.owner is not owner:
        raise ValueError("this is no cache of this prefix. Make one with prefix.cache().")
    if cache.current.step is not None:  # Ctrl-C, after which no hook is called
        cache.end(whole=False)
    cache.check_whole()
    if cache.rows not in (None, len(ids)):
        raise ValueError(f"the cache has {cache.rows} rows and input_ids {len(ids)}: they must be the same.")
    if owner.length + ids.shape[1] <= cache.get_seq_length():
        raise ValueError(
            f"input_ids of {ids.shape[1]} tokens: the cache has read {cache.get_seq_length() - owner.length} after "
            f"the prefix. Give everything so far, and the new turn after it."
        )


def longest_suffix(settings: dict[str, Any], config: Any, width: int, prefix: int) -> int | None:
    """The largest number of tokens that a suffix will hold; None if that is open. The last one is not read."""
    new, total = (settings.get(name, getattr(config, name, None)) for name in ("max_new_tokens", "max_length"))
    if new is None and total is None:
        return None
    return (total or 0 if new is None else width + new) - prefix - 1
