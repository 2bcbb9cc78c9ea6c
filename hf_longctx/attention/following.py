"""The self-check of a whole model: does a text that is read in pieces reach every layer through the cache?

`parity` compares a layer with its stock class. This follows a few tokens through the model itself, in three forwards
over one cache, the last of a single token: every layer must find the cache and get the positions after those read, in
the embeddings that the model really hands to it. A model or a version of transformers that does otherwise is refused,
instead of decoding wrongly.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from transformers import DynamicCache

from ..anatomy import layer_type
from ..cache.recurrent import takes_positions
from ..upstream.caches import given_cache
from ..upstream.versions import SAY_VERSION
from .positions import Step, Tower, after_forward, before_forward, has_rope, stock_class
from .watch import evaluating

PIECES = (3, 2, 1)


class _Enough(Exception):
    """Every kind of layer has been seen."""


@torch.no_grad()
def follow(tower: Any, state: Tower) -> None:
    """ValueError, with the reason, unless a text in pieces reaches the patched layers of `tower` as it should.

    Once for a model. Only the layers up to the last new kind are run. A model that is spread over processes is left to
    its first forwards, which raise where a cache is not found.
    """
    where = tower.get_input_embeddings().weight.device
    if (torch.distributed.is_available() and torch.distributed.is_initialized()) or not state.rotary_is_ready():
        return
    kinds = {(type(m), layer_type(m), has_rope(m)): m for m in reversed(state.layers)}
    last = max(kinds.values(), key=lambda module: module.layer_idx)  # type: ignore[arg-type, return-value]
    cache, start = DynamicCache(config=tower.config), 0
    device = "cpu" if where.type == "meta" else where  # offloaded: accelerate moves them on
    for length in PIECES:
        ids = torch.arange(start, start + length, device=device)[None] % tower.config.vocab_size
        kwargs = {"input_ids": ids, "use_cache": True, **given_cache(tower, cache)}
        if takes_positions(tower):  # as `generate` gives them
            kwargs["position_ids"] = torch.arange(start, start + length, device=device)[None]
        state.following = _watch(start, length, last)
        try:
            with evaluating(tower):
                before_forward(tower, (), kwargs)
                try:
                    tower.forward(**kwargs)
                finally:
                    after_forward(tower, (), None)
        except _Enough:
            pass
        except Exception as error:
            raise ValueError(
                f"{type(tower).__name__}: refused by the self-check, which reads a few tokens in pieces through the "
                f"model's cache: {type(error).__name__}: {error}"
            ) from error
        finally:
            state.following = None
        start += length
    state.followed = True


def _watch(start: int, length: int, last: Any) -> Callable[..., None]:
    expected = list(range(start, start + length))

    def see(module: Any, step: Step, layer: Any) -> None:
        found = step.q_pos_BL[0].tolist()
        if layer is None or found != expected or layer.seen != start + length:
            held = "no cache" if layer is None else f"a cache, of {layer.seen} tokens by now,"
            raise RuntimeError(
                f"{stock_class(module).__name__} found {held} and positions {found}, for tokens {expected} of a text. "
                f"{SAY_VERSION}"
            )
        if module is last:
            raise _Enough

    return see
