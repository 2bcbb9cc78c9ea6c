"""Cached keys at other positions: rotated further by the difference of the model's own angles.

Whether a layer rotates its keys, and whether re-rotating them gives what the layer itself would have cached, is seen in
a forward of a few tokens rather than guessed from its family.
"""

# G key/value heads, S cached keys, D head dim; the batch is always 1
from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from ..anatomy import layer_type
from ..ops.checked import checked_once, layer_tolerance, relative_error
from ..ops.layout import RotaryLayout
from ..ops.rotation import Rotation
from ..upstream.caches import given_cache
from .selfcheck import probe
from .state import DecoderState
from .subclass import stock_class
from .table import rotary_embedding
from .watch import Through, arguments, evaluating, look
from .ways import reach_of, reachable

_SHIFT = 20  # positions by which the self-check moves


def angles_of(decoder: nn.Module) -> DecoderState:
    """What asks the rotary embedding of a model, with or without a method, for its angles."""
    return DecoderState(None, rotary_embedding(decoder), "sdpa")  # type: ignore[arg-type]


def turn(rotary: DecoderState, module: Any, layout: RotaryLayout, old_pos_1S: Tensor, new_pos_1S: Tensor) -> Rotation:
    """The rotation, fp32, that takes keys from where the model has rotated them to other positions."""
    like = torch.empty((), dtype=torch.float32, device=old_pos_1S.device)
    old = rotary.rotation(module, layout, like, old_pos_1S)
    new = rotary.rotation(module, layout, like, new_pos_1S)
    size = old.cos**2 + old.sin**2  # not 1 where the rotary embedding scales (yarn), and keys carry that already
    cos = (new.cos * old.cos + new.sin * old.sin) / size
    sin = (new.sin * old.cos - new.cos * old.sin) / size
    return Rotation(cos, sin, layout)


class Mover:
    """Moves the stock, rotated keys of one model. Layers of one kind share their angles."""

    def __init__(self, decoder: Any) -> None:
        self.decoder, self.angles = decoder, angles_of(decoder)
        self._turns: dict[tuple[Any, ...], Rotation] = {}

    def move(self, module: Any, keys_1GSD: Tensor, start: int, delta: int) -> Tensor:
        """Keys of the positions from `start` on as the model would have cached them `delta` positions further."""
        layout = self.layout(module, keys_1GSD) if delta and keys_1GSD.shape[2] else None
        if layout is None:
            return keys_1GSD
        key = (layer_type(module), keys_1GSD.device, start, keys_1GSD.shape[2], delta, layout)
        if key not in self._turns:
            pos = torch.arange(start, start + keys_1GSD.shape[2], device=keys_1GSD.device)[None]
            self._turns[key] = turn(self.angles, module, layout, pos, pos + delta)
        return self._turns[key](keys_1GSD.float()).to(keys_1GSD.dtype)

    def layout(self, module: Any, keys_1GSD: Tensor) -> RotaryLayout | None:
        """How this layer rotates its keys; None: it does not.

        ValueError unless its keys, moved, are those that it would have cached.
        """
        return checked_once(module, "rotates", lambda: self._check(module, keys_1GSD))

    @torch.no_grad()
    def _check(self, module: Any, keys_1GSD: Tensor) -> RotaryLayout | None:
        name = stock_class(module).__name__
        hidden = probe(self.decoder.config.hidden_size, keys_1GSD.device, keys_1GSD.dtype)
        pos = torch.arange(hidden.shape[1], device=hidden.device)[None]
        (here, values), (there, moved) = (self._cached(module, hidden, at) for at in (pos, pos + _SHIFT))
        if here.shape[1::2] != keys_1GSD.shape[1::2]:
            raise ValueError(
                f"this cache holds {keys_1GSD.shape[1]} heads of {keys_1GSD.shape[3]} dimensions in layer "
                f"{module.layer_idx}, and the model caches {here.shape[1]} of {here.shape[3]}: it is another "
                f"model's. Give the cache that this model has filled."
            )
        if not torch.equal(values, moved):
            raise ValueError(
                f"{name} caches something that depends on positions in the place of values, as multi-head latent "
                f"attention (MLA) does. Its cache cannot be edited; read the text again."
            )
        if torch.equal(here, there):
            return None
        with reachable(module, self.decoder.config):
            found = look(module, hidden, self.angles.embeddings(module, hidden, pos), {})
        off = float("nan")
        for layout in found.layouts:
            off = relative_error(turn(self.angles, module, layout, pos, pos + _SHIFT)(here.float()), there)
            if off <= layer_tolerance(keys_1GSD.dtype):
                return layout
        raise ValueError(
            f"{name}: refused by the self-check. Its keys, moved to other positions, are off by {off:.1e} (relative), "
            f"so it does more with rotated keys than cache them. Its cache cannot be edited; read the text again."
        )

    def _cached(self, module: Any, hidden: Tensor, pos: Tensor) -> tuple[Tensor, Tensor]:
        """The keys and values that this layer would cache for `hidden` at these positions."""
        stock, cache = stock_class(module), Through()
        handed = reach_of(stock).given(self.angles.embeddings(module, hidden, pos))
        kwargs = {"attention_mask": None, "position_ids": pos, **given_cache(stock.forward, cache), **handed}
        failed: Exception | None = None
        with evaluating(module):
            try:
                module(hidden, **arguments(stock, kwargs))
            except Exception as error:  # the keys are all that is asked for
                failed = error
        if cache.kept is None:
            raise ValueError(
                f"{stock.__name__}: its cached keys could not be looked at, so hf_longctx cannot tell how to move them "
                f"({failed}). Read the text again."
            ) from failed
        return cache.kept
