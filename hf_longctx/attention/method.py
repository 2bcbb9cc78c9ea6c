"""`AttentionMethod`: the base of methods that decide where cached keys are read and which pairs exist."""

# B batch, H query heads, L queries, D head dim
from __future__ import annotations

import copy
import inspect
import logging
from collections.abc import Iterator
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from ..anatomy import attention_layers, full_attention_layers
from ..cache.base import UnrotatedLayer
from ..method import Footprint, LongContextMethod
from ..ops.attend import attend
from ..ops.available import TRITON
from ..ops.branch import Branch
from ..patch import Patch, applied
from ..rope.parameters import readable_length, refuse_moving_frequencies
from ..upstream.versions import warn_of_untested
from . import registry  # noqa: F401  (its functions take their places in transformers)
from .around import after_forward, open_cache
from .base_attention import check_device, check_name
from .following import before_forward, follow
from .forward import position_free
from .inputs import AttentionInputs
from .names import Implementation
from .selfcheck import check_parity, check_rotary_function, head_dim_of, probe
from .state import STATE, DecoderState
from .subclass import rotary_function

logger = logging.getLogger("hf_longctx")
SMALLEST_WINDOW = 256  # that a plan suggests


class AttentionMethod(LongContextMethod):
    """A method on the position-free core. Subclasses implement `branches` and `cache_layer`.

    Only full-attention layers are touched; sliding-window layers keep their class, their cache and their mask.
    """

    decides_positions: ClassVar[bool] = True
    endless: ClassVar[bool] = True

    def cache_layer(self, module: nn.Module) -> UnrotatedLayer:
        """The empty cache layer of one attention module."""
        raise NotImplementedError

    def branches(self, inputs: AttentionInputs) -> list[Branch]:
        """The softmax's disjoint parts for the queries of one layer."""
        raise NotImplementedError

    def attention(self, inputs: AttentionInputs) -> Tensor:
        """The output of one layer, (B, L, H, D)."""
        return attend(self.branches(inputs), scale=inputs.scale, kernel=inputs.decoder.kernel, strict=False)

    def angles(self, decoder: DecoderState, pos_BL: Tensor) -> tuple[Tensor, Tensor] | None:
        """Cosines and sines at these positions, (B, L, D) each; None: those of the model's own rotary embedding."""
        return None

    def bias(self, module: nn.Module) -> Any:
        """What is added to a layer's scores, by distance; None: nothing."""
        return None

    def footprint(self, module: nn.Module) -> Footprint | None:
        """All keys are kept and seen, unless a method says otherwise."""
        return Footprint()

    def reach(self, config: Any) -> int | None:
        """Any number of tokens, or those that the config says the model reads."""
        return None if self.endless else readable_length(config)

    def check(self, decoder: nn.Module) -> None:
        """Raise ValueError where this method cannot serve this model. Called before the first change."""

    def surround(self, patch: Patch, outer: Any) -> None:
        """Let a composite model open the cache, whose size it asks for before the decoder runs."""
        if getattr(outer, "config", patch.model.config) is not patch.model.config:
            patch.add_hook(outer, open_cache, "pre")

    def install(self, patch: Patch, decoder: nn.Module) -> None:
        """Turn the full-attention layers into their position-free subclasses, and check one of each kind."""
        config: Any = decoder.config
        layers = full_attention_layers(decoder)
        refuse_moving_frequencies(self, getattr(config, "rope_parameters", None))
        other = [p.method for p in applied(decoder) if p.method.decides_positions]
        if other:
            raise ValueError(
                f"{self!r}: {other[0]!r} is already applied to this model's attention. Undo it first "
                f"(hf_longctx.undo(model)), or start from the model without it."
            )
        for module in layers:
            kind: Any = type(module)
            check_rotary_function(kind, rotary_function(kind))
            dropout = getattr(module, "attention_dropout", 0.0)
            rate = getattr(dropout, "p", dropout)  # some models keep a Dropout module
            if rate:
                raise ValueError(
                    f"attention_dropout={rate}: hf_longctx attention does not implement dropout. Load the model with "
                    f"from_pretrained(..., attention_dropout=0.0)."
                )
        method = self.resolve(config)
        method.check(decoder)
        current = config._attn_implementation or "sdpa"
        base = current.base_attention if isinstance(current, Implementation) else current
        check_name(base)
        check_device(base, layers[0], head_dim_of(layers[0]))
        if not TRITON and next(layers[0].parameters()).is_cuda:
            logger.warning("Triton is not installed: attention over un-rotated keys is several times slower without.")
        rotary: Any = decoder.rotary_emb
        per_layer_type = "layer_type" in inspect.signature(rotary.forward).parameters
        state = DecoderState(method, rotary, base, per_layer_type)
        state.layers = layers
        patch.set(decoder, STATE, state)
        for module in layers:
            stock: Any = type(module)
            patch.set_class(module, position_free(stock))
            patch.set(module, STATE, state)
        for owned in {id(m.config): m.config for m in decoder.modules() if hasattr(m, "config")}.values():
            patch.set(owned, "_attn_implementation_internal", Implementation(base))
        self._leave_alone(patch, [m for m in attention_layers(decoder) if m not in layers], base)
        patch.add_hook(decoder, before_forward, "pre")
        patch.add_hook(decoder, after_forward, "post")
        dtype = next((p.dtype for p in decoder.parameters() if p.is_floating_point()), torch.float32)
        for module in layers:
            device = next(module.parameters()).device
            if device.type == "meta" and any(hasattr(m, "_hf_hook") for m in module.modules()):
                continue  # offloaded: its first forward checks, as it does what a model that is being loaded could not
            # bitsandbytes changes the layout of 4-bit weights on the CPU in their first forward, and saves those wrong
            if device.type == "cpu" and any(p.dtype == torch.uint8 for p in module.parameters()):
                continue
            if device.type == "meta" or state.rotary_is_ready():
                check_parity(module, state, probe(config.hidden_size, device, dtype))
        if state.checked:  # else the first forward does
            follow(decoder, state)
            warn_of_untested()

    def _leave_alone(self, patch: Patch, modules: list[nn.Module], base: str) -> None:
        """Give layers that stay stock a config that names `base`: flash attention reads there which library it is."""
        named: dict[int, Any] = {}
        for module in modules:
            own: Any = getattr(module, "config", None)
            if own is None:
                continue
            if id(own) not in named:
                named[id(own)] = copy.copy(own)
                vars(named[id(own)])["_attn_implementation_internal"] = base
            patch.set(module, "config", named[id(own)])


def halved(window: int | None) -> Iterator[int]:
    """Ever smaller windows, for `smaller`."""
    size = window or 0
    while size // 2 >= SMALLEST_WINDOW:
        size //= 2
        yield size
