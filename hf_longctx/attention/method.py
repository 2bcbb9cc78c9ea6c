"""`AttentionMethod`: the base of methods that decide where cached keys are read and which pairs exist."""

# B batch, H query heads, L queries, D head dim
from __future__ import annotations

import copy
import logging
from collections.abc import Iterator
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from ..anatomy import attention_layers, full_attention_layers, has_table, takes_embeddings, weight_of
from ..cache.base import UnrotatedLayer
from ..method import Footprint, LongContextMethod
from ..ops.available import TRITON
from ..ops.bias import Bias
from ..ops.branch import Branch
from ..patch import Patch, applied
from ..rope.parameters import readable_length, refuse_moving_frequencies
from ..settings import ATTENTION_NAMES
from . import registry  # noqa: F401  (its functions take their places in transformers)
from .around import after_forward, open_cache
from .base_attention import check_device, check_name
from .following import before_forward, can_follow, follow
from .forward import position_free
from .inputs import AttentionInputs
from .names import base_of
from .selfcheck import Refused, check_layer, head_dim_of, probe
from .state import FOUND, STATE, DecoderState
from .subclass import stock_class
from .table import endless, rotary_embedding

logger = logging.getLogger("hf_longctx")
SMALLEST_WINDOW = 256  # that a plan suggests


class AttentionMethod(LongContextMethod):
    """A method on the position-free core. Subclasses implement `branches` and `cache_layer`.

    Only full-attention layers are touched; sliding-window layers keep their class, their cache and their mask.
    """

    decides_positions: ClassVar[bool] = True
    endless: ClassVar[bool] = True
    host_setting: ClassVar[str] = ""  # the setting, if there is one, that keeps keys in host memory where it is True

    @property
    def looks_up(self) -> bool:
        """Does it look tokens up, which it can also leave out while a text is read (`DecoderState.looking_up`)?"""
        return False

    def cache_layer(self, module: nn.Module) -> UnrotatedLayer:
        """The empty cache layer of one attention module."""
        raise NotImplementedError

    def branches(self, inputs: AttentionInputs) -> list[Branch]:
        """The softmax's disjoint parts for the queries of one layer."""
        raise NotImplementedError

    def attention(self, inputs: AttentionInputs) -> Tensor:
        """The output of one layer, (B, L, H, D)."""
        looking = inputs.looking
        parts = [inputs]
        if self.looks_up and 0 < looking < inputs.q_BHLD.shape[2]:
            parts = [inputs.before(looking), inputs.last(looking)]
        outs = [part.attend(self.branches(part), part.decoder.kernel) for part in parts]
        return outs[0] if len(outs) == 1 else torch.cat(outs, 1)

    def angles(self, decoder: DecoderState, pos_BL: Tensor) -> tuple[Tensor, Tensor] | None:
        """Cosines and sines at these positions, (B, L, D) each; None: those of the model's own rotary embedding."""
        return None

    def bias(self, module: nn.Module) -> Bias | None:
        """The bias on the scores of a layer, by distance. None: there is none."""
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
            if getattr(module, "config", None) is None:  # it names the attention function
                patch.set(module, "config", config)
        method = self.resolve(config)
        method.check(decoder)
        current = config._attn_implementation or "sdpa"
        base = base_of(current) or current
        check_name(base)
        check_device(base, layers[0], head_dim_of(layers[0]))
        if not TRITON and weight_of(layers[0]).is_cuda:
            logger.warning("Triton is not installed: attention over un-rotated keys is several times slower without.")
        rotary = rotary_embedding(decoder)
        if has_table(rotary):
            stock_table: Any = type(rotary)
            patch.set_class(rotary, endless(stock_table))
        state = DecoderState(method, rotary, base, getattr(decoder, "_supports_sdpa", True))
        state.layers = layers
        patch.set(decoder, STATE, state)
        for module in layers:
            stock: Any = type(module)
            patch.set_class(module, position_free(stock))
            patch.set(module, STATE, state)
            patch.set(module, FOUND, {})
        for owned in {id(m.config): m.config for m in decoder.modules() if hasattr(m, "config")}.values():
            patch.set(owned, "_attn_implementation_internal", ATTENTION_NAMES[base])
        self._leave_alone(patch, [m for m in attention_layers(decoder) if m not in layers], base)
        patch.add_hook(decoder, before_forward, "pre")
        patch.add_hook(decoder, after_forward, "post")
        self._check(decoder, state)

    def _check(self, decoder: Any, state: DecoderState) -> None:
        """Check one layer of each kind, and follow a text through the model: now, or else in its first forward."""
        dtype = next((p.dtype for p in decoder.parameters() if p.is_floating_point()), torch.float32)
        tried = False
        for module in state.layers:
            device = weight_of(module).device
            if device.type == "meta" and any(hasattr(m, "_hf_hook") for m in module.modules()):
                continue  # offloaded
            # bitsandbytes changes the layout of 4-bit weights on the CPU in their first forward, and saves those wrong
            if device.type == "cpu" and any(p.dtype == torch.uint8 for p in module.parameters()):
                continue
            if device.type != "meta" and not state.rotary_is_ready():
                continue
            tried |= device.type != "meta"
            hidden = probe(decoder.config.hidden_size, device, dtype)
            zero = torch.zeros(1, 1, dtype=torch.long, device=device)
            # as the model will call it: some look their angles up themselves, and get none
            handed = state.embeddings(module, hidden, zero) if takes_embeddings(stock_class(module)) else None
            try:
                check_layer(module, state, hidden, handed, {})
            except Refused:
                if device.type != "meta" and not can_follow(state):
                    raise  # else what the model hands to it decides
        if tried:
            follow(decoder, state)

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
