"""The hook alone: keys cached un-rotated, read at their own positions, through the model's own attention."""

from __future__ import annotations

import dataclasses
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from ..attention.base_attention import PLAIN
from ..attention.inputs import AttentionInputs
from ..attention.method import AttentionMethod
from ..attention.subclass import function_named
from ..attention.ways import INTERFACE, TORCH
from ..cache import FullLayer, UnrotatedLayer
from ..ops.branch import Branch
from ..ops.masks import Causal, pairs


@dataclasses.dataclass(frozen=True, kw_only=True)
class PositionFree(AttentionMethod):
    """Changes nothing but where rotation happens: the output is the model's own, bit for bit.

    Keys are cached un-rotated, which every attention method rests on. The smallest example of one.
    Under flash and flex attention the output is the model's own up to rounding.

    Use when: you want to know whether attention methods can serve a model: `hf_longctx.check(model)` applies it.

    Cannot: read further than the model does.

    Costs: a rotation of all cached keys at every step.
    """

    name: ClassVar[str] = "position_free"
    summary: ClassVar[str] = "nothing changed but un-rotated keys in the cache: for checking a model"
    paper: ClassVar[str] = ""
    endless: ClassVar[bool] = False
    extends: ClassVar[bool] = False

    def cache_layer(self, module: nn.Module) -> UnrotatedLayer:
        """All keys."""
        return FullLayer(self)

    def branches(self, inputs: AttentionInputs) -> list[Branch]:
        """All keys, at their true distances."""
        return [inputs.branch(Causal(), inputs.keys, *inputs.true_ropes())]

    def attention(self, inputs: AttentionInputs) -> Tensor:
        """Through the model's own attention function where it takes any mask."""
        module: Any = inputs.module
        base, way = inputs.decoder.base_attention, module._reach.way
        if not (way == INTERFACE and base in PLAIN) and not (way == TORCH and base == "sdpa"):
            return super().attention(inputs)
        q_rope, k_rope = inputs.true_ropes()
        q = inputs.q_BHLD if q_rope is None else q_rope(inputs.q_BHLD)
        k = inputs.keys.k if k_rope is None else k_rope(inputs.keys.k)
        mask = None
        eager = base == "eager"
        if eager or inputs.padded or not (inputs.nothing_cached or q.shape[2] == 1):
            seen = pairs(Causal(), inputs.q_pos_BL, inputs.keys.pos)
            mask = seen | ~seen.any(-1, keepdim=True)
            if eager:  # it adds its mask
                mask = torch.zeros_like(mask, dtype=q.dtype).masked_fill(~mask, torch.finfo(q.dtype).min)
        more = {"softcap": inputs.softcap, "s_aux": inputs.sink_H}
        more = {name: value for name, value in more.items() if value is not None}
        out: Tensor = function_named(base, module)(
            module, q, k, inputs.keys.v, mask, scaling=inputs.scale, dropout=0.0, **more
        )[0]
        return out


def check(model: nn.Module) -> None:
    """Raise ValueError, with the reason, where attention methods cannot serve `model`. The model is left as it was.

    `PositionFree` is applied, whose self-check compares a layer of each kind with the model's own, and undone.
    """
    PositionFree().apply(model).undo()
