"""Around a forward of the whole decoder: checks before the first layer, and clean-up at the end."""

from __future__ import annotations

import threading
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from ..cache.base import UnrotatedLayer
from ..cache.recurrent import broke_off, check_whole
from ..cache.to_host import join_all
from ..cache.waiting import put_back
from ..upstream.caches import cache_in, cache_out
from .base_attention import PLAIN
from .caches import adopt_all
from .order import check_rows, positions_of_another_length
from .state import STATE, DecoderState, check_implementation
from .waiting import keeps_states, own_arguments, rows_of


def claim(decoder_module: nn.Module, state: DecoderState) -> None:
    """One thread at a time: RuntimeError while another's forward runs."""
    if torch.compiler.is_compiling():
        return
    if state.running and state.thread not in (None, threading.get_ident()):
        raise RuntimeError(
            f"{type(decoder_module).__name__}: another thread's forward is still running, and a model with "
            f"{state.method.name} serves one thread at a time. Use a lock, or one copy of the model per thread."
        )
    state.thread = threading.get_ident()
    if state.reading is not None:  # Ctrl-C, after which no hook is called
        _over(state, raised=True)


def begin(decoder_module: nn.Module, args: Any, kwargs: dict[str, Any]) -> dict[str, Any]:
    """Checks everything that can be wrong before the first layer runs, so that a cache is never left half-updated.

    Returns the arguments that the decoder must be given otherwise than it was.
    """
    state: DecoderState = vars(decoder_module)[STATE]
    given = kwargs.get("position_ids")
    state.steps, state.lent, state.running, state.rows = [], {}, True, None
    state.pos = given if isinstance(given, Tensor) else None
    check_implementation(state.layers[0])
    if kwargs.get("output_attentions") or getattr(decoder_module.config, "output_attentions", False):
        raise ValueError(f"output_attentions=True: {state.method.name} never forms the attention matrix. Leave it out.")
    tokens = next((x for x in (kwargs.get("input_ids"), kwargs.get("inputs_embeds"), *args) if x is not None), None)
    known = not torch.compiler.is_compiling() and isinstance(tokens, Tensor) and tokens.ndim > 1
    n_new = tokens.shape[1] if known and isinstance(tokens, Tensor) else None
    if n_new is not None and state.pos is not None and state.pos.shape[-1] not in (1, n_new):
        raise ValueError(positions_of_another_length(state.pos, n_new))
    open_cache(decoder_module, args, kwargs)
    if n_new is not None and isinstance(tokens, Tensor):
        check_rows(len(tokens), state.opened)
    changes: dict[str, Any] = {}
    if isinstance(tokens, Tensor) and tokens.ndim > 1 and keeps_states(state, decoder_module.config):
        mask, name = kwargs.get("attention_mask"), type(decoder_module).__name__
        state.rows = rows_of(state, name, cache_in(kwargs, args), mask, tokens)
        changes = own_arguments(state, decoder_module, kwargs, tokens)
    learns = partial(_learns, decoder_module, tokens, state.opened)
    kinds: dict[type[UnrotatedLayer], list[UnrotatedLayer]] = {}
    for layer in dict.fromkeys(state.opened):
        kinds.setdefault(type(layer), []).append(layer)
    for kind, layers in kinds.items():
        kind.before_forward(layers, n_new, learns)
    if not torch.compiler.is_compiling():
        state.reading = cache_in(kwargs, args)
        state.had = len(getattr(state.reading, "layers", ()))
    return changes


def shortens(state: DecoderState, kwargs: dict[str, Any]) -> bool:
    """Would the model run its last layers for the last tokens alone, which its own attention does not allow (Gemma 4)?

    It asks for the name of its attention, which is ours: with the masks that sdpa leaves out for several tokens, and
    with those of flash and flex, it would not. All logits are computed then; the model picks those that are kept.
    """
    keep = kwargs.get("logits_to_keep")
    return isinstance(keep, int) and keep > 0 and (keep > 1 or state.base_attention not in PLAIN)


def _learns(decoder_module: nn.Module, tokens: Any, layers: list[UnrotatedLayer]) -> bool:
    """Will there be gradients?"""
    if not torch.is_grad_enabled():
        return False
    kept = (layer.keys for layer in layers if layer.keys is not None)
    return any(tensor.requires_grad for tensor in (tokens, *kept, *decoder_module.parameters()))


def open_cache(model: nn.Module, args: Any, kwargs: dict[str, Any]) -> None:
    """Let `model`, which carries a method, read the cache that it is called with."""
    cache = cache_in(kwargs, args)
    if cache is not None:
        state: DecoderState = next(vars(m)[STATE] for m in model.modules() if STATE in vars(m))
        check_whole(cache)
        for layer in adopt_all(state, cache):
            layer.open()
            state.opened.append(layer)


def after_forward(decoder_module: nn.Module, args: Any, output: Any) -> None:
    """Let go of the forward's tensors and close the cache to other models, also after an exception."""
    state: DecoderState = vars(decoder_module)[STATE]
    if not torch.compiler.is_compiling() and state.thread not in (None, threading.get_ident()):
        return  # this thread's forward was refused; the other one continues
    if output is not None and state.rows is not None:
        put_back(state.rows, _cache_of(output) if state.reading is None else state.reading, state.opened)
    _over(state, raised=output is None and state.following is None)


def _cache_of(output: Any) -> Any:
    """The cache in what a decoder returned, which it may have made itself."""
    return cache_in({}, output) if isinstance(output, tuple) else cache_out(output)


def _over(state: DecoderState, raised: bool) -> None:
    if not torch.compiler.is_compiling():
        join_all()
    if raised and state.reading is not None:
        broke_off(state.reading, state.had)
    state.steps, state.running, state.pos, state.reading, state.rows = [], False, None, None, None
    for lent in state.lent.values():
        lent.end()
    for layer in state.opened:
        layer.close()
    state.opened = []
