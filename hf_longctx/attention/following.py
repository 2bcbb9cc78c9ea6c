"""The self-check of a whole model: does a text that is read in pieces reach every layer through the cache?

`parity` compares a layer with its stock class. This follows a few tokens through the model itself, in three forwards
over one cache, the last of a single token: every layer must find the cache and get the positions after those read, in
the embeddings that the model really hands to it. A model or a version of transformers that does otherwise is refused,
instead of decoding wrongly.
"""

from __future__ import annotations

from typing import Any

import torch

from ..anatomy import layer_type
from ..cache.recurrent import takes_positions
from ..upstream.caches import given_cache
from ..upstream.versions import SAY_VERSION
from .around import after_forward, begin, claim
from .state import STATE, DecoderState, Step, has_rope
from .subclass import stock_class
from .watch import evaluating

PIECES = 3, 2, 1


class _Enough(Exception):
    """Every kind of layer has been seen; `cache` is what they have read into."""

    def __init__(self, cache: Any) -> None:
        super().__init__()
        self.cache = cache


@torch.no_grad()
def follow(decoder: Any, state: DecoderState) -> None:
    """ValueError, with the reason, unless a text in pieces reaches the patched layers of `decoder` as it should.

    Once for a model. Only the layers up to the last new kind are run. A model that is spread over processes is left to
    its first forwards, which raise where a cache is not found.
    """
    if (torch.distributed.is_available() and torch.distributed.is_initialized()) or not state.rotary_is_ready():
        return
    kinds = {(type(m), layer_type(m), has_rope(m)): m for m in reversed(state.layers)}
    last = max(kinds.values(), key=lambda module: module.layer_idx)  # type: ignore[arg-type, return-value]
    cache, start = None, 0  # a model makes its first cache itself
    for length in PIECES:
        try:
            cache = _read(decoder, state, cache, start, length, last)
        except Exception as error:
            raise ValueError(
                f"{type(decoder).__name__}: refused by the self-check, which reads a few tokens in pieces through the "
                f"model's cache: {type(error).__name__}: {error}"
            ) from error
        start += length
    state.followed = True


def _read(decoder: Any, state: DecoderState, cache: Any, start: int, length: int, last: Any) -> Any:
    """Read tokens from `start` on through the layers up to `last`; the cache that they found."""
    where = decoder.get_input_embeddings().weight.device
    device = "cpu" if where.type == "meta" else where  # offloaded: accelerate moves them on
    expected = list(range(start, start + length))
    pos = torch.tensor([expected], device=device)
    kwargs = {"input_ids": pos % decoder.config.vocab_size, "use_cache": True}
    if takes_positions(decoder):  # as `generate` gives them
        kwargs["position_ids"] = pos
    if cache is not None:
        kwargs |= given_cache(decoder, cache)

    def see(module: Any, step: Step, layer: Any, cache: Any) -> None:
        found = step.q_pos_BL[0].tolist()
        if layer is None or found != expected or layer.seen != start + length:
            held = "no cache" if layer is None else f"a cache, of {layer.seen} tokens by now,"
            raise RuntimeError(
                f"{stock_class(module).__name__} found {held} and positions {found}, for tokens {expected} of a text. "
                f"{SAY_VERSION}"
            )
        if module is last:
            raise _Enough(cache)

    state.following = see
    try:
        with evaluating(decoder):
            begin(decoder, (), kwargs)
            try:
                decoder.forward(**kwargs)
            finally:
                after_forward(decoder, (), None)
    except _Enough as enough:
        return enough.cache
    finally:
        state.following = None
    raise RuntimeError(f"{stock_class(last).__name__} was not called. {SAY_VERSION}")


def before_forward(decoder_module: Any, args: Any, kwargs: dict[str, Any]) -> None:
    """The hook before a decoder's forward. Its first one follows a text through the cache."""
    state: DecoderState = vars(decoder_module)[STATE]
    claim(decoder_module, state)
    if not (state.followed or state.following or torch.compiler.is_compiling()):
        follow(decoder_module, state)
    begin(decoder_module, args, kwargs)
