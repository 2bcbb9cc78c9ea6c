"""The self-check of a whole model: does a text that is read in pieces reach every layer through the cache?

`parity` compares a layer with its stock class. This follows a few tokens through the model itself, in three forwards
over one cache, the last of a single token: every layer must find the cache and get the positions after those read, in
the embeddings that the model really hands to it. A model or a version of transformers that does otherwise is refused,
instead of decoding wrongly. On a release newer than those tested, `steps` compares outputs as well.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import nn

from ..anatomy import layer_type, weight_of
from ..upstream.versions import SAY_VERSION, untested, warn_of_untested
from .around import begin, claim, shortens
from .call import LayerCall
from .pieces import forward, handed_to
from .selfcheck import Refused
from .state import STATE, DecoderState, known_of
from .steps import compare_step
from .subclass import stock_class
from .watch import evaluating

PIECES = 3, 2, 1


class _Enough(Exception):
    """Every kind of layer has been seen; `cache` is what they have read into."""

    def __init__(self, cache: Any) -> None:
        super().__init__()
        self.cache = cache


def can_follow(state: DecoderState) -> bool:
    """Can the model itself be run now?"""
    spread = torch.distributed.is_available() and torch.distributed.is_initialized()
    return not spread and state.rotary_is_ready() and all(_can_run(module) for module in state.layers)


def _can_run(module: nn.Module) -> bool:
    """Is a layer neither being loaded nor between two distributions of its weights over devices?"""
    hooked = any(hasattr(m, "_hf_hook") for m in module.modules())  # accelerate brings the weights
    return hooked or weight_of(module).device.type != "meta"


@torch.no_grad()
def follow(decoder: Any, state: DecoderState) -> None:
    """ValueError, with the reason, unless a text in pieces reaches the patched layers of `decoder` as it should.

    Once for a model. Only the layers up to the last new kind are run. A model that is spread over processes is left to
    its first forwards, which raise where a cache is not found.
    """
    if not can_follow(state):
        return
    kinds: dict[Any, int] = {}
    for i, module in enumerate(state.layers):
        known = known_of(module)
        if known or weight_of(module).device.type != "meta":  # offloaded ones are seen in their first forward
            kinds.setdefault((type(module), layer_type(module), *known.values()), i)
    last = state.layers[max(kinds.values(), default=0)]
    cache, start = None, 0  # a model makes its first cache itself
    for length in PIECES:
        try:
            with torch.compiler.set_stance("force_eager"):  # layers may be compiled, each by itself
                cache = _read(decoder, state, cache, start, length, last)
        except Refused:
            raise
        except Exception as error:
            raise ValueError(
                f"{type(decoder).__name__}: refused by the self-check, which reads a few tokens in pieces through the "
                f"model's cache: {type(error).__name__}: {error}"
            ) from error
        start += length
    if untested():
        compare_step(decoder)
    warn_of_untested()
    state.followed = True


def _read(decoder: Any, state: DecoderState, cache: Any, start: int, length: int, last: Any) -> Any:
    """Read tokens from `start` on through the layers up to `last`; the cache that they found."""
    expected = list(range(start, start + length))
    kwargs = handed_to(decoder, start, length, cache)
    seen: list[Any] = []

    def see(module: Any, call: LayerCall, cache: Any, rotates: bool) -> None:
        found, layer = call.step.q_pos_BL[0].tolist(), call.layer
        if rotates != bool(call.found.layouts):
            raise Refused(
                f"{stock_class(module).__name__} {'rotates' if rotates else 'does not rotate'} its keys when the model "
                f"calls it, other than by itself: something else that it is handed, such as biases by distance "
                f"(ALiBi), decides. hf_longctx does not support this model as it is."
            )
        if call.found.lends and (layer is None or found != expected or layer.seen != start + length):
            held = "no cache" if layer is None else f"a cache, of {layer.seen} tokens by now,"
            raise RuntimeError(
                f"{stock_class(module).__name__} found {held} and positions {found}, for tokens {expected} of a text. "
                f"{SAY_VERSION}"
            )
        if module is last:
            seen.append(cache)
            if not any(numbers for _, *numbers in known_of(module)):  # else it is called again, elsewhere in the model
                raise _Enough(cache)

    state.following = see
    try:
        with evaluating(decoder):
            forward(decoder, kwargs)
    except _Enough as enough:
        return enough.cache
    finally:
        state.following = None
    if seen:
        return seen[-1]
    raise RuntimeError(f"{stock_class(last).__name__} was not called. {SAY_VERSION}")


def before_forward(decoder_module: Any, args: Any, kwargs: dict[str, Any]) -> tuple[Any, dict[str, Any]] | None:
    """The hook before a decoder's forward. Its first one follows a text through the cache."""
    state: DecoderState = vars(decoder_module)[STATE]
    claim(decoder_module, state)
    if not (state.followed or state.following or torch.compiler.is_compiling()):
        follow(decoder_module, state)
    changes = begin(decoder_module, args, kwargs)
    if shortens(state, kwargs):
        changes["logits_to_keep"] = 0
    return (args, {**kwargs, **changes}) if changes else None
