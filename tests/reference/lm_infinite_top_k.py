"""LM-Infinite's look-up as it was before `choose`: one matrix of scores over all keys, kept to compare with."""

from __future__ import annotations

import dataclasses
from typing import Any

import torch
from torch import Tensor

from hf_longctx import LMInfinite
from hf_longctx.cache import FullLayer
from hf_longctx.ops.masks import BeyondWindow, TopKeys, Window, pairs


@dataclasses.dataclass(frozen=True, kw_only=True)
class OneMatrix(LMInfinite):
    """Not a method of its own: it has no name in the registry."""

    def cache_layer(self, module: Any) -> Any:
        return FullLayer(self) if self._looks_up(module) else super().cache_layer(module)

    def branches(self, inputs: Any) -> list[Any]:
        assert self.n_local is not None
        first = inputs.first(self.n_global)
        local = inputs.branch(Window(self.n_local), inputs.keys, *inputs.true_ropes())
        far = inputs.branch(BeyondWindow(self.n_local), first, q_rope=None, k_rope=inputs.relative(-self.n_local))
        if not self._looks_up(inputs.module):
            return [local, far]
        halfway = inputs.relative(self.n_local // 2)
        q_half = inputs.q_BHLD if halfway is None else halfway(inputs.q_BHLD)
        chosen = TopKeys(self._best_middle(inputs, q_half, first))
        return [local, far, inputs.branch(chosen, inputs.keys, q_rope=None, k_rope=None, q_BHLD=q_half)]

    @torch.no_grad()
    def _best_middle(self, inputs: Any, q_BHLD: Tensor, first: Any) -> Tensor:
        assert self.n_local is not None
        keys, k_pos_BS = inputs.keys.k, inputs.keys.pos
        after_first_BS = k_pos_BS > first.pos.amax(1, keepdim=True) if len(first) else k_pos_BS >= 0
        middle_B1LS = pairs(BeyondWindow(self.n_local), inputs.q_pos_BL, k_pos_BS) & after_first_BS[:, None, None]
        q_BGRLD = q_BHLD.unflatten(1, (keys.shape[1], -1))
        scores = torch.einsum("bgrld,bgsd->bgrls", q_BGRLD, keys).masked_fill(~middle_B1LS[:, None], float("-inf"))
        best = scores.flatten(1, 2).topk(min(self.top_k, keys.shape[2]), dim=-1)
        return best.indices.masked_fill(best.values == float("-inf"), -1)
