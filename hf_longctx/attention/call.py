"""`LayerCall`: the attention of one layer in one forward, called by the model's own code."""

# B batch, H query heads, G key/value heads, L queries, S keys, D head dim
from __future__ import annotations

import weakref
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from ..anatomy import layer_type
from ..cache.base import UnrotatedLayer
from ..cache.slots import KeyValues
from .base_attention import checked
from .inputs import AttentionInputs
from .state import DecoderState, Lent, Step
from .watch import Found


@dataclass(eq=False)
class LayerCall:
    """What the forward of a patched module hands to the attention function, through the model's own code.

    Args:
        decoder: The decoder's state.
        step: The forward.
        found: What the layer does.
        layer: Of the cache; None without one.
    """

    decoder: DecoderState
    step: Step
    found: Found
    layer: UnrotatedLayer | None = None

    def __call__(
        self,
        module: nn.Module,
        query: Tensor,
        key: Tensor,
        value: Tensor,
        scaling: float | None,
        dropout: float,
        more: dict[str, Any],
    ) -> tuple[Tensor, None]:
        """The layer's attention, (B, L, H, D), over un-rotated queries and keys (B, H or G, L or S, D)."""
        query, scale = checked(module, query, scaling, dropout, more)
        kind = layer_type(module)  # asked once a layer: attributes of a config are slow to look up
        lent = self._keys(module, kind, key)
        sinks, n = lent.sinks, lent.ahead
        if sinks is not None and sinks.k.device != key.device:  # another layer's, on another device
            sinks = sinks.map(lambda t: t.to(key.device))
        if n and sinks is not None:  # what the model made of the sinks, which came before all others
            sinks = KeyValues(key[:, :, :n], value[:, :, :n], sinks.pos)
            key, value = key[:, :, n:], value[:, :, n:]
        inputs = AttentionInputs(
            module=module,
            kind=kind,
            decoder=self.decoder,
            step=self.step,
            found=self.found,
            q_BHLD=query,
            keys=KeyValues(key, value, lent.pos_BS.to(key.device)),
            sinks=sinks,
            padded=lent.padded,
            layout=lent.layout,
            nothing_cached=key.shape[2] == query.shape[2],
            in_step=lent.step is self.step,
            scale=scale,
            everything=lent.everything,
            softcap=more.get("softcap"),
            sink_H=more.get("s_aux"),
        )
        return self.decoder.method.attention(inputs).contiguous(), None

    def open(self, layer: UnrotatedLayer | None) -> None:
        """Take the cache layer that the model is about to write."""
        self.layer = layer
        if layer is not None:
            layer.joined = self.decoder.joined
            layer.open()
            self.decoder.opened.append(layer)
            layer.push(self.step.q_pos_BL, self.step.padded, self.step.once)

    def _keys(self, module: nn.Module, kind: str, key: Tensor) -> Lent:
        """Where the keys stand that a layer attends to: its own, or those of the last layer of its kind with any."""
        lent = self.decoder.lent
        if self.found.lends:
            layer, own = self.layer, self.step
            if layer is None:
                lent[kind] = Lent(_same(key), own.q_pos_BL, own, own.padded)
            else:
                assert layer.readable_pos is not None
                padded, ahead = own.padded or layer.padded, len(layer.sinks) if layer.joined and layer.sinks else 0
                held = layer.layout, layer.sinks, ahead, layer.everything
                lent[kind] = Lent(_same(key), layer.readable_pos, own, padded, *held)
            return lent[kind]
        own = self.step
        if not self.decoder.running and key.shape[2] == own.q_pos_BL.shape[1]:  # run again by gradient checkpointing
            return Lent(None, own.q_pos_BL, own, own.padded)  # other forwards may have lent since
        found = lent.get(kind)
        if found is None or found.ahead + found.pos_BS.shape[1] != key.shape[2] or not found.is_of(key):
            raise RuntimeError(
                f"{type(module).__name__} reads keys of another layer that hf_longctx has not seen in this forward, so "
                f"their positions are not known."
            )
        return found


def _same(key: Tensor) -> Callable[[], Tensor | None]:
    """Something that tells a tensor from others without keeping it."""
    return (lambda: key) if torch.compiler.is_compiling() else weakref.ref(key)
