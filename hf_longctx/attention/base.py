"""`AttentionMethod`: the base of methods that decide where cached keys are read and which pairs exist."""

# B batch, H query heads, L queries, D head dim
from __future__ import annotations

import copy
import inspect
import logging
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from ..anatomy import attention_layers, full_attention_layers
from ..cache.layers import UnrotatedLayer
from ..method import LongContextMethod
from ..patch import Patch, applied
from ..rope.parameters import moving_types
from ..upstream.versions import warn_of_untested
from .available import TRITON
from .branches import Branch, attend
from .following import follow
from .inner import check_device, check_name
from .names import Implementation
from .parity import check_parity, check_rotary_function, head_dim_of, probe
from .positions import (
    STATE,
    Tower,
    after_forward,
    before_forward,
    open_cache,
    position_free,
    rotary_function,
)
from .read import Read

logger = logging.getLogger("hf_longctx")


class AttentionMethod(LongContextMethod):
    """A method on the position-free core. Subclasses implement `branches` and `cache_layer`.

    Only full-attention layers are touched; sliding-window layers keep their class, their cache and their mask.
    """

    decides_positions: ClassVar[bool] = True
    endless: ClassVar[bool] = True

    def cache_layer(self, module: nn.Module) -> UnrotatedLayer:
        """The empty cache layer of one attention module."""
        raise NotImplementedError

    def branches(self, read: Read) -> list[Branch]:
        """The softmax's disjoint parts for the queries of one layer."""
        raise NotImplementedError

    def attention(self, read: Read) -> Tensor:
        """(B, L, H, D)"""
        return attend(self.branches(read), scale=read.scale, kernel=read.tower.kernel, strict=False)

    def check(self, tower: nn.Module) -> None:
        """Raise ValueError where this method cannot serve this model. Called before the first change."""

    def surround(self, patch: Patch, outer: Any) -> None:
        if getattr(outer, "config", patch.model.config) is not patch.model.config:
            patch.add_hook(outer, open_cache, "pre")  # a composite model asks the cache for its size by itself

    def install(self, patch: Patch, tower: nn.Module) -> None:
        config: Any = tower.config
        layers = full_attention_layers(tower)
        refuse_moving_frequencies(self, getattr(config, "rope_parameters", None))
        other = [p.method for p in applied(tower) if p.method.decides_positions]
        if other:
            raise ValueError(
                f"{self!r}: the model's attention is already that of {other[0]!r}. Undo it first "
                f"(hf_longctx.undo(model)), or start from the model without it."
            )
        for module in layers:
            kind: Any = type(module)
            check_rotary_function(kind, rotary_function(kind))
            dropout = getattr(module, "attention_dropout", 0.0)
            rate = getattr(dropout, "p", dropout)  # some models keep a Dropout module
            if rate:
                raise ValueError(
                    f"attention_dropout={rate}: attention in branches has no dropout. Load the model with "
                    f"from_pretrained(..., attention_dropout=0.0)."
                )
        method = self.resolve(config)
        method.check(tower)
        current = config._attn_implementation or "sdpa"
        inner = current.inner if isinstance(current, Implementation) else current
        check_name(inner)
        check_device(inner, layers[0], head_dim_of(layers[0]))
        if not TRITON and next(layers[0].parameters()).is_cuda:
            logger.warning("Triton is not installed: attention over un-rotated keys is several times slower without.")
        rotary: Any = tower.rotary_emb
        per_layer_type = "layer_type" in inspect.signature(rotary.forward).parameters
        state = Tower(method, rotary, inner, per_layer_type)
        state.layers = layers
        patch.set(tower, STATE, state)
        for module in layers:
            stock: Any = type(module)
            patch.set_class(module, position_free(stock))
            patch.set(module, STATE, state)
        for owned in {id(m.config): m.config for m in tower.modules() if hasattr(m, "config")}.values():
            patch.set(owned, "_attn_implementation_internal", Implementation(state.inner))
        self._leave_alone(patch, [m for m in attention_layers(tower) if m not in layers], inner)
        patch.add_hook(tower, before_forward, "pre")
        patch.add_hook(tower, after_forward, "post")
        dtype = next((p.dtype for p in tower.parameters() if p.is_floating_point()), torch.float32)
        for module in layers:
            device = next(module.parameters()).device
            if device.type == "meta" and any(hasattr(m, "_hf_hook") for m in module.modules()):
                continue  # offloaded: its first forward checks, as it does what a model that is being loaded could not
            # bitsandbytes lays 4-bit weights out anew for the CPU in their first forward, and saves those wrong
            if device.type == "cpu" and any(p.dtype == torch.uint8 for p in module.parameters()):
                continue
            if device.type == "meta" or state.rotary_is_ready():
                check_parity(module, state, probe(config.hidden_size, device, dtype))
        if state.checked:  # else the first forward does
            follow(tower, state)
            warn_of_untested()

    def _leave_alone(self, patch: Patch, modules: list[nn.Module], inner: str) -> None:
        """Give layers that stay stock a config that names `inner`: flash attention reads there which library it is."""
        named: dict[int, Any] = {}
        for module in modules:
            own: Any = getattr(module, "config", None)
            if own is None:
                continue
            if id(own) not in named:
                named[id(own)] = copy.copy(own)
                vars(named[id(own)])["_attn_implementation_internal"] = inner
            patch.set(module, "config", named[id(own)])


def refuse_moving_frequencies(method: LongContextMethod, rope_parameters: dict[str, Any] | None) -> None:
    """ValueError for frequencies that change with the length read (dynamic, longrope with two tables)."""
    moving = moving_types(rope_parameters)
    if moving:
        raise ValueError(
            f"rope_type={moving[0]!r} changes its frequencies with the length read, so positions cannot be decided "
            f"anew. {type(method).__name__} needs none of it beyond its window: use the model's original "
            f"rope_parameters."
        )
