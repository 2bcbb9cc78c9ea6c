"""`AttentionMethod`: the base of methods that decide where cached keys are read and which pairs exist."""

# B batch, H query heads, L queries, D head dim
from __future__ import annotations

import inspect
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from ..anatomy import full_attention_layers
from ..cache.layers import UnrotatedLayer
from ..method import LongContextMethod
from ..patch import Patch, applied
from ..rope.parameters import moving_types
from .branches import Branch, attend
from .parity import check_parity, probe
from .positions import (
    STATE,
    Implementation,
    Tower,
    after_forward,
    before_forward,
    open_cache,
    position_free,
    rotary_function,
)
from .read import Read


class AttentionMethod(LongContextMethod):
    """A method on the position-free core. Subclasses implement `branches` and `cache_layer`.

    Only full-attention layers are touched; sliding-window layers keep their class, their cache and their mask.
    """

    decides_positions: ClassVar[bool] = True

    def cache_layer(self, module: nn.Module) -> UnrotatedLayer:
        """The empty cache layer of one attention module."""
        raise NotImplementedError

    def branches(self, read: Read) -> list[Branch]:
        """The softmax's disjoint parts for the queries of one layer."""
        raise NotImplementedError

    def attention(self, read: Read) -> Tensor:
        """(B, L, H, D)"""
        return attend(self.branches(read), scale=read.scale, kernel=read.tower.kernel)

    def check(self, tower: nn.Module) -> None:
        """Raise ValueError where this method cannot serve this model. Called before the first change."""

    def surround(self, patch: Patch, outer: Any) -> None:
        if getattr(outer, "config", patch.model.config) is not patch.model.config:
            patch.add_hook(outer, open_cache, "pre")  # a composite model asks the cache for its size by itself

    def install(self, patch: Patch, tower: nn.Module) -> None:
        config: Any = tower.config
        layers = full_attention_layers(tower)
        refuse_moving_frequencies(self, getattr(config, "rope_parameters", None))
        other = [p.method for p in applied(tower) if isinstance(p.method, AttentionMethod)]
        if other:
            raise ValueError(
                f"{self!r}: the model's attention is already that of {other[0]!r}. Undo it first (patch.undo() or "
                f"hf_longctx.undo(model))."
            )
        for module in layers:
            rotary_function(type(module))
            dropout = getattr(module, "attention_dropout", 0.0)
            rate = getattr(dropout, "p", dropout)  # some models keep a Dropout module
            if rate:
                raise ValueError(
                    f"attention_dropout={rate}: attention in branches has no dropout. Set config.attention_dropout "
                    f"to 0 before the model is built."
                )
        method = self.resolve(config)
        method.check(tower)
        current = config._attn_implementation
        inner = current.inner if isinstance(current, Implementation) else current
        rotary: Any = tower.rotary_emb
        per_layer_type = "layer_type" in inspect.signature(rotary.forward).parameters
        state = Tower(method, rotary, inner if isinstance(inner, str) else "sdpa", per_layer_type)
        state.layers = layers
        patch.set(tower, STATE, state)
        for module in layers:
            stock: Any = type(module)
            patch.set_class(module, position_free(stock))
            patch.set(module, STATE, state)
        for owned in {id(m.config): m.config for m in tower.modules() if hasattr(m, "config")}.values():
            patch.set(owned, "_attn_implementation_internal", Implementation(state.inner))
        patch.add_hook(tower, before_forward, "pre")
        patch.add_hook(tower, after_forward, "post")
        weight = next(layers[0].parameters())
        if weight.device.type != "meta" and state.rotary_is_ready():
            # else (a model being loaded, or offloaded) its first forward checks
            dtype = next((p.dtype for p in tower.parameters() if p.is_floating_point()), torch.float32)
            check_parity(layers[0], state, probe(config.hidden_size, weight.device, dtype))
            state.checked = True


def refuse_moving_frequencies(method: LongContextMethod, rope_parameters: dict[str, Any] | None) -> None:
    """ValueError for frequencies that change with the length read (dynamic, longrope with two tables)."""
    moving = moving_types(rope_parameters)
    if moving:
        raise ValueError(
            f"rope_type={moving[0]!r} changes its frequencies with the length read, so positions cannot be decided "
            f"anew. {type(method).__name__} needs none of it beyond its window: use the model's original "
            f"rope_parameters."
        )
