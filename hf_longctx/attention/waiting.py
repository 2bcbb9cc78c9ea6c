"""Rows of a batch that wait, in models with recurrent or convolution layers, which stay transformers' own.

A stock state takes every column of a forward: it decays over padding, its convolution sees zeros there, and a single
token is read as text whatever the mask says. Only padding before a row's first token leaves it as it was. So the states
of rows that a forward hides as a whole are put back after it, and a row is refused that would go on from a state which
has read something other than what the mask shows.
"""

# B batch, L new tokens, T tokens read before and new
from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from transformers import DynamicCache

from ..cache.recurrent import has_states, states_by_place, takes_positions
from ..cache.waiting import SPOILT, Rows
from .state import DecoderState


def keeps_states(state: DecoderState, config: Any) -> bool:
    """Has the decoder layers that keep a state?"""
    if state.recurs is None:
        state.recurs = has_states(DynamicCache(config=config))
    return state.recurs


def rows_of(state: DecoderState, name: str, cache: Any, mask: Any, tokens: Tensor) -> Rows | None:
    """Look at the rows of a forward before it begins; None where each reads every token, and has so far.

    Args:
        state: Of a decoder that keeps states; its cache is open.
        name: The decoder's class, for errors.
        cache: That it is called with, or None.
        mask: The attention mask that it is called with: (B or 1, T) of all tokens so far. Others are refused later.
        tokens: (B, L) or (B, L, X), of this forward.

    Raises:
        ValueError: the states of a row that goes on have read something other than what the mask shows, or would.
    """
    first = next((layer for layer in state.opened if layer.is_initialized), None)
    seen, read_B = (0, None) if first is None else (first.seen, first.read_B)
    compiling, (B, L) = torch.compiler.is_compiling(), tokens.shape[:2]
    if mask is None:
        if read_B is None:
            return None
        real = tokens.new_ones(B, seen + L, dtype=torch.bool)
    elif isinstance(mask, Tensor) and mask.ndim == 2 and len(mask) in (1, B) and mask.shape[1] >= seen + L:
        real = mask[:, : seen + L].bool().expand(B, -1)
    else:
        return None
    if read_B is None:
        if not compiling and bool(real.all()):
            return None
        read_B = real.new_full((B,), seen, dtype=torch.long)
    read_B, new = read_B.to(real.device), real[:, seen:]
    reads_B = new.any(1)
    hidden = ~new & ((new.cumsum(1) + read_B[:, None]) > 0)  # after the row's first token
    middle_B = (new & (hidden.cumsum(1) > 0)).any(1)
    other_B = reads_B & (read_B != real[:, :seen].sum(1))
    after_B = torch.where(reads_B, torch.where(hidden.any(1), SPOILT, read_B + new.sum(1)), read_B)
    regular = (reads_B & ~middle_B & ~other_B).all()
    if compiling:  # values cannot be looked at while a graph is traced
        torch._assert_async(regular, _other(name, "a row") + " In a compiled model no row can wait.")
    if compiling or bool(regular):
        return Rows(after_B)
    if bool(other_B.any()):
        raise ValueError(_other(name, f"row {int(other_B.long().argmax())}"))
    if bool(middle_B.any()):
        raise ValueError(
            f"row {int(middle_B.long().argmax())}: attention_mask hides tokens after its first, and shows some after "
            f"them in the same forward. The recurrent layers of {name} would read both, as they do without "
            f"{state.method.name}. Pad before a row's first token only; with a cache, read pieces in which each row is "
            f"shown or hidden as a whole, or each row by itself."
        )
    before = {} if cache is None else {place: kept.clone() for place, kept in states_by_place(cache).items()}
    return Rows(after_B, ~reads_B, before)


def _other(name: str, row: str) -> str:
    return (
        f"{row} goes on, and the states of {name}'s recurrent layers have read other tokens of it than attention_mask "
        f"shows: padding behind its text, or tokens that are hidden or shown since. What a state has read cannot be "
        f"changed. Start with a new cache, and read each row by itself, or in forwards that show or hide all of it."
    )


def own_arguments(state: DecoderState, decoder: Any, kwargs: dict[str, Any], tokens: Tensor) -> dict[str, Any]:
    """Arguments that a decoder which keeps states must get otherwise than it is called with.

    - `attention_mask`, where it is a longer one, that of a whole prompt with each of its chunks: recurrent layers would
      take its last columns for their own.
    - `position_ids`, where none are given after a cache: a decoder that asks a layer without keys how much the cache
      has read (MiniMax), or does not ask (Bamba), counts from 0 again.
    """
    changes, mask, L = {}, kwargs.get("attention_mask"), tokens.shape[1]
    seen = next((layer.seen for layer in state.opened), 0)
    if isinstance(mask, Tensor) and mask.ndim == 2 and mask.shape[1] > seen + L:
        changes["attention_mask"] = mask[:, : seen + L]
    if seen and kwargs.get("position_ids") is None:
        state.told = takes_positions(decoder) if state.told is None else state.told
        if state.told:
            changes["position_ids"] = torch.arange(seen, seen + L, device=tokens.device)[None]
    return changes
