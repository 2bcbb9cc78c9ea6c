"""Problems of looking tokens up in pages, and the same choice made by torch; on any device."""

# B rows, H query heads, G key/value heads, L queries, S slots, D head dim, T tables, K slots of a table
from __future__ import annotations

from typing import Any, NamedTuple

import torch
from torch import Tensor

from hf_longctx.attention.lookup import choose
from hf_longctx.cache import KeyValues, Store
from hf_longctx.ops import pages as sizes
from hf_longctx.ops.codes import Centre, encode, score
from hf_longctx.ops.paged import paged
from hf_longctx.ops.pages import Pages

CENTRED_BY, AFTER = 32, 3


class Lookup(NamedTuple):
    """Queries of two rows, the second shorter and with hidden tokens, and pages with nan where they are not filled."""

    q: Tensor
    q_pos: Tensor
    k: Tensor
    v: Tensor
    pos: Tensor
    pages: Pages
    held: list[Tensor]
    near: int

    @classmethod
    def of(
        cls, H: int, G: int, D: int, S: int, L: int = 1, near: int = 20, dtype: torch.dtype = torch.float32,
        device: str = "cpu", seed: int = 0, more: int = 0,
    ) -> Lookup:  # fmt: skip
        random = torch.Generator().manual_seed(seed)
        q, k, v = (torch.randn(2, n, s, D, generator=random) for n, s in ((H, L), (G, S), (G, S)))
        k = k * torch.randn(G, 1, D, generator=random).exp() + 2 * torch.randn(G, 1, D, generator=random)
        q, k, v = (x.to(dtype) for x in (q, k, v))
        pos = torch.arange(S).repeat(2, 1)
        pos[1, 40:50] = -1
        q_pos = torch.arange(S - L, S).repeat(2, 1)
        q_pos[1, 1:2] = -1  # padding
        q, k, v, pos, q_pos = (x.to(device) for x in (q, k, v, pos, q_pos))
        pages, held = paged(k, v, pos, CENTRED_BY, -(-S // sizes.PAGE) + more)
        pages.filled_B[1] -= S // 3
        for n, page in enumerate(held):
            rest = page[:, max(S - n // 5 % -(-S // sizes.PAGE) * sizes.PAGE, 0) :]  # five tensors a page, row by row
            rest.fill_(float("nan") if page.is_floating_point() else 3)
        return cls(q, q_pos, k, v, pos, pages, held, near)

    @property
    def settings(self) -> dict[str, Any]:
        """Arguments of `triton_lookup.choose` besides queries and pages."""
        return {"near": self.near, "after_B": torch.full((2,), AFTER, device=self.q.device)}

    def shown(self) -> Tensor:
        """The positions, (B, S), -1 too where a row is not filled."""
        slot = torch.arange(self.pos.shape[1], device=self.pos.device)
        return self.pos.masked_fill(slot >= self.pages.filled_B[:, None], -1)

    def code_scores(self, per: str) -> Tensor:
        """(B, T, L, S): in fp32 by `ops.codes.score`, -inf where a slot is no candidate."""
        rows = []
        for b, pos in enumerate(self.shown()):
            centre = Centre.of(self.k[b, :, :CENTRED_BY])
            q = self.q[b].unflatten(0, (len(self.k[b]), -1)).float()
            scores = score(q, *encode(self.k[b], centre), centre)
            scores = scores.amax(1) if per == "group" else scores.flatten(0, 1)
            here = self.q_pos[b][:, None]
            seen = (here - self.near >= pos) & (pos > AFTER) & (here >= CENTRED_BY - 1)
            rows.append(scores.masked_fill(~seen, float("-inf")))
        return torch.stack(rows)

    def key_scores(self, per: str) -> Tensor:
        """(B, T, L, S): by the keys themselves."""
        q = self.q.unflatten(1, (self.k.shape[1], -1)).float()
        scores = torch.einsum("bgrld,bgsd->bgrls", q, self.k.float())
        return scores.amax(2) if per == "group" else scores.flatten(1, 2)

    def by_keys(self, k: int, per: str) -> list[list[list[set[int]]]]:
        """The slots of the best k tokens by loops, for each row, table and query."""
        scores, found = self.key_scores(per).cpu(), []
        for b, (pos, here) in enumerate(zip(self.shown().tolist(), self.q_pos.tolist(), strict=True)):
            seen = [[s for s, at in enumerate(pos) if at > AFTER and at <= p - self.near] for p in here]
            found.append([
                [set(sorted(some, key=lambda s: (-float(table[l, s]), s))[:k]) for l, some in enumerate(seen)]
                for table in scores[b]
            ])  # fmt: skip
        return found

    def chosen(self, k: int, per: str, shortlist: int) -> Tensor:
        """The choice of `attention.lookup.choose` in fp32, padded to k slots with -1."""
        keys = KeyValues(self.k.float(), self.v, self.shown())
        store = Store.of(keys, CENTRED_BY)
        table = choose(
            self.q.float(),
            self.q_pos,
            store,
            k=k,
            near=self.near,
            after_B=torch.full_like(self.pos[:, 0], AFTER),
            by="signs",
            per=per,
            shortlist=shortlist,
        )
        return torch.nn.functional.pad(table, (0, k - table.shape[-1]), value=-1)


def agree(lookup: Lookup, table: Tensor, k: int, per: str, shortlist: int) -> None:
    """A table is right, but for tokens whose scores are alike to the rounding of sums and of a query's steps."""
    codes, keys = lookup.code_scores(per), lookup.key_scores(per)
    truth = lookup.chosen(k, per, shortlist)
    assert table.shape == truth.shape, f"shape {tuple(table.shape)}, expected {tuple(truth.shape)}"
    assert torch.equal((table >= 0).sum(-1), (truth >= 0).sum(-1)), "as many tokens as there are, up to k"
    ordered = table.sort(-1).values
    assert not ((ordered[..., 1:] == ordered[..., :-1]) & (ordered[..., 1:] >= 0)).any(), "no token twice"
    there, at = table >= 0, table.clamp(min=0)
    assert torch.equal(codes.gather(-1, at).isfinite() | ~there, torch.ones_like(there)), "candidates only"
    # the last score that makes the shortlist, and the last of its keys that is chosen
    bound = codes.topk(min(shortlist, codes.shape[-1]), -1).values[..., -1:]
    size = codes[codes.isfinite()].abs().max() if codes.isfinite().any() else torch.ones(())
    off = (bound - codes.gather(-1, at)).masked_fill(~there | ~bound.isfinite(), float("-inf")).amax()
    assert off <= 2e-3 * size, f"a token below the shortlist by {float(off):.2e} was chosen"
    same = (table.sort(-1).values == truth.sort(-1).values).all(-1)
    missed = (keys.gather(-1, truth.clamp(min=0)).sum(-1) - keys.gather(-1, at).sum(-1))[~same]
    assert same.float().mean() >= 0.9, f"tables differ: {table[~same]} for {truth[~same]}, worse by {missed}"
