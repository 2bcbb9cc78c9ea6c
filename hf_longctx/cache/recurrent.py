"""Recurrent and convolution states, which layers of hybrid models keep beside keys or instead of them.

A state is of one size however much is read, has no length, and is written in place: nothing shows afterwards how far it
has read. Some models use the states for single tokens only, and start again with every longer piece of a text.
"""

from __future__ import annotations

import inspect
from typing import Any

import torch
from torch import Tensor, nn
from transformers import DynamicCache

from ..patch import unwrap
from ..upstream.caches import given_cache

KINDS = ("recurrent_states", "conv_states")
BROKEN = "_hf_longctx_broken"  # in the __dict__ of a cache
FEW = 4  # tokens of a piece that is read to find something out


def states(cache: Any, kinds: tuple[str, ...] = KINDS) -> list[Tensor]:
    """The recurrent and convolution states of a cache, without those that are not made yet."""
    return list(states_by_place(cache, kinds).values())


def states_by_place(cache: Any, kinds: tuple[str, ...] = KINDS) -> dict[tuple[int, str, Any], Tensor]:
    """The same, (B, ...) each, by the number of their layer in the cache, their kind, and their key in that layer."""
    return {
        (i, kind, key): state
        for i, layer in enumerate(getattr(cache, "layers", ()))
        for kind in kinds
        if isinstance(held := getattr(layer, kind, None), dict)
        for key, state in held.items()
        if isinstance(state, Tensor)
    }


def has_states(cache: Any) -> bool:
    """Does a layer of this cache keep recurrent or convolution states, made yet or not?"""
    return any(hasattr(layer, kind) for layer in getattr(cache, "layers", ()) for kind in KINDS)


def broke_off(cache: Any, had: int) -> None:
    """Note that a forward through this cache raised: it cannot be continued where it is half-read.

    Layers of all kinds count: a stock window may have read on before the first layer of un-rotated keys. States show
    nothing, so any state counts as one that has read on; so does a layer beyond the `had` ones that the cache had when
    the forward began, since others may be missing.
    """
    lengths = {int(layer.get_seq_length()) for layer in cache.layers if hasattr(layer, "get_seq_length")}
    more = len(cache.layers) > had and lengths != {0}
    vars(cache)[BROKEN] = len(lengths) > 1 or more or bool(states(cache))


def check_whole(cache: Any) -> None:
    """RuntimeError for a cache that a forward has left half-read."""
    if getattr(cache, BROKEN, False):
        raise RuntimeError(
            "a forward pass through this cache broke off half-way: some layers have read on and others have not. Start "
            "with a new cache."
        )


def takes_positions(model: Any) -> bool:
    """Should a forward through a cache be told its `position_ids`? A Bamba that is not counts from 0 again in each.

    Models that take none count by themselves, as do those whose learned positions have room for padding (RoBERTa's
    tokens begin at 2).
    """
    base: Any = unwrap(model) if isinstance(model, nn.Module) else model
    if "position_ids" not in inspect.signature(getattr(base, "forward", base)).parameters:
        return False
    learned = (m for name, m in base.named_modules() if name.endswith("position_embeddings"))
    return not any(getattr(m, "padding_idx", None) is not None for m in learned)


@torch.no_grad()
def lost_between_pieces(model: Any, piece: int) -> str | None:
    """Say what is lost where a text is read through a cache in pieces of `piece` tokens; None if nothing is.

    Only models with states are tried, by three forwards of a few tokens: whatever reads a state comes out as NaN once
    the state is NaN.
    """
    base: Any = unwrap(model) if isinstance(model, nn.Module) else model
    if not hasattr(base, "config") or not has_states(DynamicCache(config=base.config)):
        return None
    size = min(piece, FEW)
    pos = torch.arange(2 * size, device=model.device)[None]
    ids = pos % base.config.get_text_config().vocab_size

    def read(cache: Any, start: int) -> Any:
        part = slice(start, start + size)
        place = {"position_ids": pos[:, part]} if takes_positions(model) else {}
        return model(input_ids=ids[:, part], **given_cache(model, cache), use_cache=True, **place).logits

    for kind in KINDS:
        cache = DynamicCache(config=base.config)
        try:
            read(cache, 0)
        except ValueError:  # MiniMax
            return "it takes no cache but one of its own kind"
        kept = states(cache, (kind,))
        for state in kept:
            state.fill_(float("nan"))
        if kept and not bool(read(cache, size).isnan().any()):
            words = kind.removesuffix("_states").replace("conv", "convolution")
            return f"its {words} layers start again with every piece of {'several tokens' if size > 1 else 'a text'}"
        if not states(cache):
            return "it keeps nothing of what it has read in the cache that it is given"
    return None
