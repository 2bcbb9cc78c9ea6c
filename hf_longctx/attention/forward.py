"""The position-free attention core: keys are cached un-rotated, and positions are decided when they are read.

`position_free(cls)` is a subclass of a model's own attention class. It runs the model's forward without its rotary
embedding, so that queries and keys stay un-rotated and so enter the cache, and hands it an attention function that asks
the method where each key is read. No model code is copied.
"""

# B batch, H query heads, G key/value heads, L queries, S keys, D head dim
from __future__ import annotations

import functools
from typing import Any

import torch
from torch import Tensor, nn
from transformers.cache_utils import Cache

from ..anatomy import has_table
from ..cache.base import UnrotatedLayer
from ..cache.stock import unrotated_layers
from ..upstream.caches import CACHE_NAMES, cache_in, given_cache, without_cache
from ..upstream.versions import SAY_VERSION
from .caches import Adopting, adopt
from .call import LayerCall
from .order import (
    below_zero,
    check_tokens,
    is_regular,
    missing,
    positions_of_another_length,
    rises,
    show_cached,
    whole_positions,
)
from .selfcheck import check_layer
from .state import STATE, DecoderState, Step, check_implementation, kind_of_call, known_of, source_of
from .subclass import stock_class, subclass
from .unrotated import noting, unrotated
from .watch import Found
from .ways import Reach, own_attention, reach_of


@functools.cache
def position_free(stock: Any) -> type[nn.Module]:
    """The subclass of an attention class that keeps its keys un-rotated. Cached: one per class."""

    def forward(self: nn.Module, hidden_states: Tensor, position_embeddings: Any = None, **kwargs: Any) -> Any:
        return _forward(self, stock, hidden_states, position_embeddings, kwargs)

    kind: Any = subclass(position_free, stock, "LongCtx", forward)
    # made once: a compiler cannot
    kind._unrotated, kind._reach = staticmethod(unrotated(stock.forward)), reach_of(stock)
    attend = own_attention(stock)
    if attend is not None:
        kind._attn = attend
    return kind


def _forward(
    module: Any, stock: type[nn.Module], hidden_states: Tensor, embeddings: Any, kwargs: dict[str, Any]
) -> Any:
    decoder: DecoderState = vars(module)[STATE]
    check_tokens(hidden_states)
    check_implementation(module)
    reach: Reach = type(module)._reach
    found = known_of(module).get(kind_of_call(reach, embeddings, kwargs))
    if not torch.compiler.is_compiling() and (found is None or not found.checked):
        found = check_layer(module, decoder, hidden_states, embeddings, kwargs)
    elif found is None or len(found.layouts) > 1:
        raise RuntimeError(
            f"{stock.__name__}: a model that was loaded with {decoder.method.name} must run once before it is "
            f"compiled, since how it rotates is seen in its first forward. Call it with a few tokens first."
        )
    cache = cache_in(kwargs)
    step = next((step for step in decoder.steps if step.source is source_of(embeddings)), None)
    if step is None:
        step = _begin(decoder, module, found, hidden_states, embeddings, cache, kwargs)
        if decoder.running:
            decoder.steps.append(step)
    call = LayerCall(decoder, step, found)
    if cache is not None:
        if found.lends and not found.elsewhere:
            call.open(adopt(decoder, cache, module, module.layer_idx))
        handed = Adopting(cache, module, call) if found.elsewhere else cache
        kwargs = {**without_cache(kwargs), **given_cache(stock.forward, handed)}
    elif kwargs.get("use_cache") and decoder.running and not torch.compiler.is_compiling():
        raise RuntimeError(
            f"{stock.__name__} was called with use_cache=True and without a cache under a name that hf_longctx knows "
            f"({', '.join(CACHE_NAMES)}): the text read before would be lost. {SAY_VERSION}"
        )
    kwargs |= reach.given(embeddings)
    if embeddings is None and has_table(module):  # which has an end, and is not used
        kwargs["position_ids"] = torch.zeros_like(kwargs["position_ids"])
    if decoder.following is None:
        return reach.run(type(module)._unrotated, module, call, hidden_states, kwargs)
    with noting() as notes:
        out = reach.run(type(module)._unrotated, module, call, hidden_states, kwargs)
    decoder.following(module, call, cache, bool(notes))
    return out


def _begin(
    decoder: DecoderState,
    module: Any,
    found: Found,
    hidden: Tensor,
    embeddings: Any,
    cache: Cache | None,
    kwargs: dict[str, Any],
) -> Step:
    B, L = hidden.shape[:2]
    if decoder.steps:  # other layers have begun; the model may run the last ones for the last tokens only (Gemma 4)
        first = decoder.steps[0]
        like = first.like if embeddings is None else decoder.parts(embeddings)[0]
        like, last, q_pos = (t.to(hidden.device) for t in (like, first.pos_BL[:, -L:], first.q_pos_BL[:, -L:]))
        _check_embeddings(decoder, module, found, embeddings, last)
        return Step(source_of(embeddings), like, last, q_pos, first.padded, first.consecutive, first.ends)
    told = kwargs.get("position_ids")
    pos: Any = decoder.pos if told is None else told
    opened = decoder.opened or ([] if cache is None else unrotated_layers(cache))
    seen = opened[0].seen if opened else 0
    if pos is None:
        pos = torch.arange(seen, seen + L, device=hidden.device)[None]
    # one row for each kind of position of a token (mrope), the text's first: supported where all are the same
    pos = pos[0] if pos.ndim == 3 else pos
    if pos.shape[-1] != L:
        raise ValueError(positions_of_another_length(pos, L))
    pos = whole_positions(pos.to(hidden.device), decoder.method.name).expand(B, L)
    _check_embeddings(decoder, module, found, embeddings, pos)
    mask = kwargs.get("attention_mask")
    if mask is None:  # none, or only ones
        for layer in opened:
            layer.show_all()
        return _step(decoder, embeddings, hidden, pos, None, opened)
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
    if seen:
        show_cached(opened, real[:, :seen])
    real = real[:, seen:].to(hidden.device)
    return _step(decoder, embeddings, hidden, pos, real, opened)


def _check_embeddings(decoder: DecoderState, module: Any, found: Found, embeddings: Any, pos_BL: Tensor) -> None:
    """ValueError where the model rotates by something other than these positions, as it does tokens of images."""
    compiling = torch.compiler.is_compiling()
    if found.layout is None or embeddings is None or (pos_BL.is_cuda and pos_BL.shape[1] == 1 and not compiling):
        return  # looking at values costs a sync, too much for every token
    cos, sin = decoder.parts(embeddings)
    here = decoder.rotation(module, found.layout, cos, pos_BL)
    close = 4 * torch.finfo(here.cos.dtype).eps
    right = ((here.cos - cos).abs().amax() <= close) & ((here.sin - sin).abs().amax() <= close)
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
    decoder: DecoderState,
    embeddings: Any,
    hidden: Tensor,
    pos_BL: Tensor,
    real_BL: Tensor | None,
    opened: list[UnrotatedLayer],
) -> Step:
    padded = real_BL is not None
    pos = pos_BL if real_BL is None else torch.where(real_BL, pos_BL, -1)
    like = hidden if embeddings is None else decoder.parts(embeddings)[0]
    ends = pos.shape[1] + (opened[0].seen if opened else 0)
    step = Step(source_of(embeddings), like, pos_BL, pos, padded, False, ends)
    compiling = torch.compiler.is_compiling()
    if pos.is_cuda and pos.shape[1] == 1 and not compiling:
        return step  # looking at values costs a sync, too much for every token
    layer = opened[0] if opened else None
    kept = None if layer is None or layer.pos is None else layer.pos.to(pos.device)
    shown = pos_BL if real_BL is None else torch.where(real_BL, pos_BL, 0)
    low = (shown < 0).any()
    rising = rises(pos, kept) & ~low
    if layer is not None and layer.padded:
        rising = rising & ~missing(layer, pos).any()
    wrong = (
        f"position_ids that start again or do not rise within a row: {decoder.method.name} takes one document per row. "
        f"Pass packed documents as rows of a padded batch, with an attention_mask; to generate, pad on the left."
    )
    if padded and layer is not None:
        wrong += (
            " Or attention_mask hides tokens that the cache has read as text, as the mask does that generate makes "
            "where the prompt has padding tokens: pass the attention_mask."
        )
    if compiling:
        torch._assert_async(rising, wrong)  # values cannot be looked at while a graph is traced
        return step
    if not bool(rising):
        if bool(low):
            raise ValueError(below_zero(shown, decoder.method.name))
        if layer is not None and bool(rises(pos, kept)):
            raise ValueError(
                f"row {int(missing(layer, pos).long().argmax())} continues at a position before some that it has read, "
                f"and tokens that it would see there have left the window, or the first tokens, of "
                f"{decoder.method.name} for others that attention_mask now hides. Read its text again with a new cache "
                f"(generate does so by itself, given the ids of the whole text and a mask as long)."
            )
        if layer is not None and layer.seen and decoder.pos is None:
            raise ValueError(
                f"position_ids were not given, and those that the model counted itself do not go on from its cache, "
                f"which has read {layer.seen} tokens. Pass those of the new tokens: "
                f"torch.arange({layer.seen}, {ends})[None], or of padded rows "
                f"attention_mask.cumsum(1)[:, {layer.seen}:] - 1."
            )
        raise ValueError(wrong)
    # only the GPU's window kernels want to know
    step.consecutive = pos.is_cuda and is_regular(pos if kept is None else torch.cat([kept, pos], 1))
    return step
