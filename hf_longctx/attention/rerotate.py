"""Cached keys at other positions: rotated further by the difference of the model's own angles.

Whether a layer rotates its keys, and whether re-rotating them gives what the layer itself would have cached, is seen in
a forward of a few tokens rather than guessed from its family.
"""

# G key/value heads, S cached keys, D head dim; the batch is always 1
from __future__ import annotations

import inspect
from functools import lru_cache
from typing import Any

import torch
from torch import Tensor

from ..anatomy import layer_type
from ..ops.checked import checked_once, layer_tolerance, relative_error
from ..ops.rotation import Rotation
from ..upstream.caches import given_cache
from .selfcheck import probe
from .state import DecoderState
from .subclass import rotary_function, stock_class
from .watch import evaluating

_SHIFT = 20  # positions by which the self-check moves


def rotary_of(decoder: Any) -> DecoderState:
    """What asks the rotary embedding of a model, with or without a method, for its angles."""
    forward = decoder.rotary_emb.forward
    return DecoderState(None, decoder.rotary_emb, "sdpa", _takes_layer_type(getattr(forward, "__func__", forward)))  # type: ignore[arg-type]


@lru_cache(maxsize=64)
def _takes_layer_type(forward: Any) -> bool:
    return "layer_type" in inspect.signature(forward).parameters


def turn(rotary: DecoderState, module: Any, old_pos_1S: Tensor, new_pos_1S: Tensor) -> Rotation:
    """The rotation, fp32, that takes keys from where the model has rotated them to other positions."""
    like = torch.empty((), dtype=torch.float32, device=old_pos_1S.device)
    old = rotary.rotation(module, like, old_pos_1S)
    new = rotary.rotation(module, like, new_pos_1S)
    size = old.cos**2 + old.sin**2  # not 1 where the rotary embedding scales (yarn), and keys carry that already
    cos = (new.cos * old.cos + new.sin * old.sin) / size
    sin = (new.sin * old.cos - new.cos * old.sin) / size
    return Rotation(cos, sin, rotary_function(stock_class(module)))


class Mover:
    """Moves the stock, rotated keys of one model. Layers of one kind share their angles."""

    def __init__(self, decoder: Any) -> None:
        self._rotary = rotary_of(decoder)
        self._turns: dict[tuple[Any, ...], Rotation] = {}

    def move(self, module: Any, keys_1GSD: Tensor, start: int, delta: int) -> Tensor:
        """Keys of the positions from `start` on as the model would have cached them `delta` positions further."""
        if not delta or not keys_1GSD.shape[2] or not self.rotates(module, keys_1GSD):
            return keys_1GSD
        key = (layer_type(module), keys_1GSD.device, start, keys_1GSD.shape[2], delta, stock_class(module))
        if key not in self._turns:
            pos = torch.arange(start, start + keys_1GSD.shape[2], device=keys_1GSD.device)[None]
            self._turns[key] = turn(self._rotary, module, pos, pos + delta)
        return self._turns[key](keys_1GSD.float()).to(keys_1GSD.dtype)

    def rotates(self, module: Any, keys_1GSD: Tensor) -> bool:
        """Does this layer rotate its keys? ValueError unless its keys, moved, are those that it would have cached."""
        return checked_once(module, "rotates", lambda: self._check(module, keys_1GSD))

    @torch.no_grad()
    def _check(self, module: Any, keys_1GSD: Tensor) -> bool:
        hidden = probe(module.config.hidden_size, keys_1GSD.device, keys_1GSD.dtype)
        pos = torch.arange(hidden.shape[1], device=hidden.device)[None]
        here, there = self._cached(module, hidden, pos), self._cached(module, hidden, pos + _SHIFT)
        if here.shape[1::2] != keys_1GSD.shape[1::2]:
            raise ValueError(
                f"this cache holds {keys_1GSD.shape[1]} heads of {keys_1GSD.shape[3]} dimensions in layer "
                f"{module.layer_idx}, and the model caches {here.shape[1]} of {here.shape[3]}: it is another "
                f"model's. Give the cache that this model has filled."
            )
        rotates = not torch.equal(here, there)
        if rotates:
            off = relative_error(turn(self._rotary, module, pos, pos + _SHIFT)(here.float()), there)
            if not off <= layer_tolerance(keys_1GSD.dtype):
                raise ValueError(
                    f"{stock_class(module).__name__}: refused by the self-check. Its keys, moved to other "
                    f"positions, are off by {off:.1e} (relative), so it does more with rotated keys than cache "
                    f"them. Its cache cannot be edited; read the text again."
                )
        return rotates

    def _cached(self, module: Any, hidden: Tensor, pos: Tensor) -> Tensor:
        """The keys that this layer would cache for `hidden` at these positions."""
        rope = self._rotary.rotation(module, hidden, pos)
        cache = _Capture()
        kwargs = given_cache(stock_class(module).forward, cache)
        failed: Exception | None = None
        with evaluating(module):
            try:
                module(
                    hidden, position_embeddings=(rope.cos, rope.sin), attention_mask=None, position_ids=pos, **kwargs
                )
            except Exception as error:  # the keys are all that is asked for
                failed = error
        if cache.keys is None:
            raise ValueError(
                f"{stock_class(module).__name__}: its cached keys could not be looked at, so hf_longctx cannot tell "
                f"how to move them ({failed}). Read the text again."
            ) from failed
        return cache.keys


class _Capture:
    """Stands in for a cache, and sees the keys that come."""

    keys: Tensor | None = None

    def update(self, keys: Tensor, values: Tensor, *args: Any, **kwargs: Any) -> tuple[Tensor, Tensor]:
        self.keys = keys
        return keys, values
