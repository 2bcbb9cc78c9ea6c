"""The position-free attention core: keys are cached un-rotated, and positions are decided when they are read.

`position_free(cls)` is a subclass of a model's own attention class. It hands (cos=1, sin=0) to the model's forward, so
that queries and keys stay un-rotated and so enter the cache, and carries the real rotation along to hf_longctx's
attention function, which asks the method where each key is read. No model code is copied.
"""

# B batch, H query heads, G key/value heads, L queries, S keys, D head dim
from __future__ import annotations

import functools
from typing import Any

import torch
from torch import Tensor, nn
from transformers.cache_utils import Cache

from ..upstream.caches import CACHE_NAMES, cache_in, given_cache, without_cache
from ..upstream.versions import SAY_VERSION
from .caches import adopt
from .identity import unrotated
from .order import is_regular, missing, rises, show_cached
from .selfcheck import check_parity, probe
from .state import STATE, DecoderState, LayerCall, Step, check_implementation, has_rope
from .subclass import stock_class, subclass


@functools.cache
def position_free(stock: Any) -> type[nn.Module]:
    """The subclass of an attention class that keeps its keys un-rotated. Cached: one per class."""

    def forward(self: nn.Module, hidden_states: Tensor, position_embeddings: Any = None, **kwargs: Any) -> Any:
        return _forward(self, stock, hidden_states, position_embeddings, kwargs)

    return subclass(position_free, stock, "LongCtx", forward)


def _forward(
    module: Any, stock: type[nn.Module], hidden_states: Tensor, embeddings: Any, kwargs: dict[str, Any]
) -> Any:
    decoder: DecoderState = vars(module)[STATE]
    check_implementation(module)
    if embeddings is None:
        raise ValueError(
            f"{stock.__name__}: a layer of this model gets no position embeddings, which {decoder.method.name} needs. "
            f"hf_longctx does not support this model."
        )
    if decoder.rope.get(module.layer_idx) not in decoder.checked and not torch.compiler.is_compiling():
        check_parity(module, decoder, probe(hidden_states.shape[-1], hidden_states.device, hidden_states.dtype))
    cache = cache_in(kwargs)
    step = decoder.step
    if step is None or step.embeddings[0] is not embeddings[0]:
        step = _begin(decoder, module, hidden_states, embeddings, cache, kwargs)
        decoder.step = step if decoder.running else None
    layer = None
    if cache is not None:
        layer = adopt(decoder.method, cache, module)
        layer.joined = decoder.joined
        layer.open()
        decoder.opened.append(layer)
        layer.push(step.q_pos_BL, step.padded)
        kwargs = {**without_cache(kwargs), **given_cache(stock.forward, cache)}
    elif kwargs.get("use_cache") and decoder.running and not torch.compiler.is_compiling():
        raise RuntimeError(
            f"{stock.__name__} was called with use_cache=True and without a cache under a name that hf_longctx knows "
            f"({', '.join(CACHE_NAMES)}): the text read before would be lost. {SAY_VERSION}"
        )
    # a compiler drops the rotation by itself
    forward = stock.forward if torch.compiler.is_compiling() else unrotated(stock.forward)
    call = LayerCall(decoder, step, layer)
    out = forward(module, hidden_states, position_embeddings=step.identity, longctx=call, **kwargs)
    if decoder.following is not None:
        decoder.following(module, step, layer, cache)
    return out


def _begin(
    decoder: DecoderState, module: Any, hidden: Tensor, embeddings: Any, cache: Cache | None, kwargs: dict[str, Any]
) -> Step:
    B, L = hidden.shape[:2]
    pos = kwargs.get("position_ids")
    pos = decoder.pos if pos is None else pos
    if pos is None:
        start = cache.get_seq_length(module.layer_idx) if cache is not None else 0
        pos = torch.arange(start, start + L, device=hidden.device)[None]
    # one row for each kind of position of a token (mrope), the text's first: supported where all are the same
    pos = (pos[0] if pos.ndim == 3 else pos).to(hidden.device).expand(B, L)
    _check_embeddings(decoder, module, embeddings, pos)
    mask = kwargs.get("attention_mask")
    if mask is None:  # none, or only ones
        for layer in decoder.opened or ([] if cache is None else [adopt(decoder.method, cache, module)]):
            layer.show_all()
        return _step(decoder, module, embeddings, pos, None, cache)
    seen = cache.get_seq_length(module.layer_idx) if cache is not None else 0
    if mask.dtype == torch.bool and tuple(mask.shape[-3:-1]) == (1, 1) and L <= mask.shape[-1] < seen + L:
        raise ValueError(
            f"attention_mask: {type(module).__name__} was handed one of {mask.shape[-1]} tokens where {seen + L} were "
            f"read: this model counts what its cache holds by a layer that keeps no keys, so padding is lost, also "
            f"without {decoder.method.name}. Give it rows of one length, or one row at a time."
        )
    if mask.dtype != torch.bool or tuple(mask.shape[-3:]) != (1, 1, seen + L):
        raise ValueError(
            f"attention_mask of shape {tuple(mask.shape)}: {decoder.method.name} builds its own mask from positions "
            f"and takes the padding only. Pass a 2D mask (batch, tokens read so far) of ones and zeros."
        )
    real = mask[:, 0, 0].expand(B, -1)
    if seen and cache is not None:
        show_cached(decoder.opened or [adopt(decoder.method, cache, module)], real[:, :seen])
    real = real[:, seen:].to(hidden.device)
    return _step(decoder, module, embeddings, torch.where(real, pos, -1), real, cache)


def _check_embeddings(decoder: DecoderState, module: Any, embeddings: tuple[Tensor, Tensor], pos_BL: Tensor) -> None:
    """ValueError where the model rotates by something other than these positions, as it does tokens of images."""
    compiling = torch.compiler.is_compiling()
    if not has_rope(module) or (pos_BL.is_cuda and pos_BL.shape[1] == 1 and not compiling):
        return  # looking at values costs a sync, too much for every token
    here = decoder.rotation(module, embeddings[0], pos_BL)
    close = 4 * torch.finfo(here.cos.dtype).eps
    right = ((here.cos - embeddings[0]).abs().amax() <= close) & ((here.sin - embeddings[1]).abs().amax() <= close)
    wrong = (
        f"{stock_class(module).__name__} rotates tokens by something other than their positions in the text: "
        f"{decoder.method.name} works with one position per token. Models that give image tokens several positions "
        f"(mrope) are supported for text alone."
    )
    if compiling:
        torch._assert_async(right, wrong)
    elif not bool(right):
        raise ValueError(wrong)


def _step(
    decoder: DecoderState, module: Any, embeddings: Any, pos: Tensor, real: Tensor | None, cache: Cache | None
) -> Step:
    padded = real is not None
    compiling = torch.compiler.is_compiling()
    if pos.is_cuda and pos.shape[1] == 1 and not compiling:
        return Step(embeddings, pos, padded, False)  # looking at values costs a sync, too much for every token
    layer = None if cache is None else adopt(decoder.method, cache, module)
    kept = None if layer is None or layer.pos is None else layer.pos.to(pos.device)
    rising = rises(pos, kept)
    if layer is not None and layer.padded:
        rising = rising & ~missing(layer, pos).any()
    wrong = (
        f"position_ids that start again or do not rise within a row: {decoder.method.name} takes one document per row. "
        f"Pass packed documents as rows of a padded batch, with an attention_mask; to generate, pad on the left."
    )
    if compiling:
        torch._assert_async(rising, wrong)  # values cannot be looked at while a graph is traced
        return Step(embeddings, pos, padded, False)
    if not bool(rising):
        if layer is not None and bool(rises(pos, kept)):
            raise ValueError(
                f"row {int(missing(layer, pos).long().argmax())} continues at a position before some that it has read, "
                f"and tokens that it would see there have left the window, or the first tokens, of "
                f"{decoder.method.name} for others that attention_mask now hides. Read its text again with a new cache "
                f"(generate does so by itself, given the ids of the whole text and a mask as long)."
            )
        raise ValueError(wrong)
    # only the GPU's window kernels want to know
    regular = pos.is_cuda and is_regular(pos if kept is None else torch.cat([kept, pos], 1))
    return Step(embeddings, pos, padded, regular)
