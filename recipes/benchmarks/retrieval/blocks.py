"""How often the best key beyond the window is among those chosen: by codes of single keys, and by blocks of them."""

# H query heads, G key/value heads, R = H / G, L queries, S slots, M blocks, K slots of a table
from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any
from unittest import mock

import torch
from torch import Tensor

from hf_longctx.attention.lookup import choose
from hf_longctx.methods import code_lookup
from hf_longctx.ops.attend import log_sum_exp

SIGNS, BLOCK, BLOCKS = 64, 64, 4  # keys by their codes; keys of a block, and blocks, as InfLLM chooses them
FAR = 0.1  # of a query's attention, which those that count have beyond the window at least


class Watch:
    """Counts, over all queries of a method with a gate, in whose choice the best key is."""

    def __init__(self, near: int, first: int) -> None:
        self.near, self.first = near, first
        self.found: Counter[str] = Counter()

    def shares(self) -> dict[str, float | None]:
        """The share of queries whose best key is among those chosen."""
        n = self.found["queries"]
        return {name: self.found[name] / n if n else None for name in ("signs", "blocks")}

    @contextmanager
    def on(self) -> Iterator[None]:
        """Watch what is looked up inside the block."""
        gated = code_lookup.gated

        def watched(found: Any, window: Any, margin: float) -> Any:
            self._count(found.inputs, found.store, found.q_BHLD, window)
            return gated(found, window, margin)

        with mock.patch.object(code_lookup, "gated", watched):
            yield

    def _count(self, inputs: Any, store: Any, q_BHLD: Tensor, window: Any) -> None:
        row, pos_L = store.rows[0], inputs.q_pos_BL[0]
        k_GSD, pos_S = row.k.cut(0, row.filled), row.pos.cut(0, row.filled)[0]
        groups = len(k_GSD)
        far_LS = (pos_L[:, None] >= pos_S + self.near) & (pos_S >= self.first)
        table_TLK = choose(
            q_BHLD, inputs.q_pos_BL, store, k=SIGNS, near=self.near, after_B=inputs.after(self.first),
            by="signs", per="group", shortlist=SIGNS,
        )[0]  # fmt: skip
        window_HL = log_sum_exp(
            window, scale=inputs.scale, kernel=inputs.decoder.kernel, strict=False, softcap=inputs.softcap
        )[0]
        q_GRLD = q_BHLD[0].unflatten(0, (groups, -1))
        for g in range(groups):
            scores_RLS = (q_GRLD[g].float() @ k_GSD[g].float().T).masked_fill_(~far_LS, float("-inf"))
            whole_RL = (scores_RLS * inputs.scale).logsumexp(-1)
            share_RL = (whole_RL - window_HL.unflatten(0, (groups, -1))[g]).sigmoid()
            best_RL = scores_RLS.argmax(-1)
            counts_RL = (share_RL > FAR) & far_LS.any(-1)
            signs_RL = (table_TLK[g][None] == best_RL[..., None]).any(-1)
            blocks_LK = block_table(q_GRLD[g], k_GSD[g], far_LS)
            in_blocks_RL = (blocks_LK[None] == (best_RL // BLOCK)[..., None]).any(-1)
            self.found["queries"] += int(counts_RL.sum())
            self.found["signs"] += int((counts_RL & signs_RL).sum())
            self.found["blocks"] += int((counts_RL & in_blocks_RL).sum())


def block_table(q_RLD: Tensor, k_SD: Tensor, far_LS: Tensor) -> Tensor:
    """The blocks whose mean key scores best, the best head of the group deciding; (L, K), -1 where there are fewer.

    A block at the edge of the window counts as a whole, as does one that holds a first token.
    """
    n = len(k_SD) // BLOCK * BLOCK
    if n == 0:
        return torch.full((q_RLD.shape[1], 1), -1, device=q_RLD.device)
    mean_MD = k_SD[:n].float().unflatten(0, (-1, BLOCK)).mean(1)
    scores_LM = (q_RLD.float() @ mean_MD.T).amax(0)
    scores_LM = scores_LM.masked_fill(~far_LS[:, :n].unflatten(1, (-1, BLOCK)).any(-1), float("-inf"))
    best = scores_LM.topk(min(BLOCKS, scores_LM.shape[-1]), dim=-1)
    return best.indices.masked_fill(best.values == float("-inf"), -1)
