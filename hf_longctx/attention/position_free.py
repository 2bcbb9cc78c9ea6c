"""The hook alone: keys cached un-rotated, read where they are, through the model's own attention."""

from __future__ import annotations

import dataclasses
from typing import ClassVar

import torch
from torch import Tensor, nn

from ..cache.layers import GrowingLayer, UnrotatedLayer
from .base import AttentionMethod
from .branches import Branch, Causal, pairs
from .inner import PLAIN
from .interface import inner_function
from .read import Read


@dataclasses.dataclass(frozen=True, kw_only=True)
class PositionFree(AttentionMethod):
    """Changes nothing but where rotation happens: the output is the model's own, bit for bit.

    Keys are cached un-rotated, which every attention method rests on. The smallest example of one.
    Under flash and flex attention the output is the model's own up to rounding.

    Use when: you want to know whether attention methods can serve a model: its `apply` checks that.

    Cannot: read further than the model does.

    Costs: a rotation of all cached keys at every step.
    """

    name: ClassVar[str] = "position_free"
    summary: ClassVar[str] = "nothing changed but un-rotated keys in the cache: for checking a model"
    paper: ClassVar[str] = ""
    endless: ClassVar[bool] = False

    def cache_layer(self, module: nn.Module) -> UnrotatedLayer:
        return GrowingLayer(self)

    def branches(self, read: Read) -> list[Branch]:
        return [read.branch(Causal())]

    def attention(self, read: Read) -> Tensor:
        if read.tower.inner not in PLAIN:
            return super().attention(read)
        q_rope, k_rope = read.true_ropes()
        q = read.q_BHLD if q_rope is None else q_rope(read.q_BHLD)
        k = read.k_BGSD if k_rope is None else k_rope(read.k_BGSD)
        mask = None
        eager = read.tower.inner == "eager"
        if eager or read.padded or not (read.fresh or q.shape[2] == 1):
            visible = pairs(Causal(), read.q_pos_BL, read.k_pos_BS)
            mask = (visible | ~visible.any(-1, keepdim=True))[:, None]
            if eager:  # it adds its mask
                mask = torch.zeros_like(mask, dtype=q.dtype).masked_fill(~mask, torch.finfo(q.dtype).min)
        out: Tensor = inner_function(read.module)(
            read.module, q, k, read.v_BGSD, mask, scaling=read.scale, dropout=0.0
        )[0]
        return out
