"""Looking tokens up: for each query the best keys of the text beyond its window, by the keys or by their codes.

A choice is made for one query from the tokens before it alone, so it does not depend on how a text is cut, padded or
cached.
"""

# B batch, H query heads, G key/value heads, R = H / G, L queries, S slots of a part of a row, D head dim, T = G or H
# tables, K slots of a table
from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any, NamedTuple

import torch
from torch import Tensor

from ..cache.slots import KeyValues
from ..cache.store import Store
from ..cache.store_row import StoreRow
from ..ops.codes import score
from ..ops.kernels.lookup import unsupported_reason

PAIRS = 2**26  # numbers that are made at once
BLOCK = 256  # queries that are scored at once at most
NONE = float("-inf")
# many queries score all keys faster than they gather a shortlist of their own, up to so many times as many keys
ALL, MANY = 16, 16


@torch.no_grad()
def choose(
    q_BHLD: Tensor,
    q_pos_BL: Tensor,
    store: Store,
    *,
    k: int,
    near: int,
    first: KeyValues,
    by: str = "keys",
    per: str = "head",
    shortlist: int = 0,
) -> Tensor:
    """For each query the slots of its best `k` tokens, (B, T, L, K), K at most k; -1 where there are fewer.

    Args:
        q_BHLD: Queries, moved to where they read keys that are left as they are.
        q_pos_BL: Their positions; -1 for padding, which looks up nothing.
        store: Where to look.
        k: How many.
        near: Tokens nearer than this are not looked up.
        first: The first tokens of every row, which are not looked up either.
        by: "keys": the best by their real keys. "signs": the best `shortlist` by their codes, and of these the best by
            their real keys.
        per: "head": a table for each query head. "group": one for the heads of a group, by the best of their scores.
        shortlist: See `by`.
    """
    (B, H, L, _), G = q_BHLD.shape, store.heads
    after_B = first.pos.amax(1) if len(first) else q_pos_BL.new_full((B,), -1)
    pages = store.pages() if by == "signs" and store.coded else None
    if pages is not None and unsupported_reason(q_BHLD, pages, per) is None:
        from ..ops.kernels.triton_lookup import choose as by_kernels

        settings: dict[str, Any] = {"k": k, "near": near, "after_B": after_B, "per": per, "shortlist": shortlist}
        return by_kernels(q_BHLD, q_pos_BL, pages, **settings)
    width = max(1, min(k, max(row.filled for row in store.rows)))
    shape = (B, G if per == "group" else H, L, width)
    table = torch.full(shape, -1, dtype=torch.long, device=q_BHLD.device)
    for b, row in enumerate(store.rows):
        if by == "signs" and row.ready is None:
            continue  # a text too short to have codes has none that are far enough either
        ready = row.ready if by == "signs" else None
        # a shortlist of all needs no codes
        q_GRLD, coded = q_BHLD[b].unflatten(0, (G, -1)), by == "signs" and row.filled > shortlist
        everything = coded and L >= MANY and row.filled <= ALL * shortlist
        # numbers of a query: the scores of all keys, or its gathered keys
        wide = max(H * row.filled if everything else shortlist * q_BHLD.shape[-1] * shape[1], 1) if coded else 1
        size = max(1, min(BLOCK, PAIRS // wide))
        for start in range(0, L, size):
            queries = slice(start, min(start + size, L))
            q, pos_L = q_GRLD[:, :, queries], q_pos_BL[b, queries]
            search = _Search(q, pos_L, row, near, after_B[b], ready, per, partial(store.take_keys, first=b))
            slots = search.by_signs(shortlist, width, everything) if coded else search.best(width)[1]
            table[b, :, queries, : slots.shape[-1]] = slots
    return table


class _Search(NamedTuple):
    """Some queries of one row, (G, R, L, D) at (L,), and where they look."""

    q_GRLD: Tensor
    pos_L: Tensor
    row: StoreRow
    near: int
    after: Tensor
    ready: Tensor | None
    per: str
    take: Callable[[Tensor], Tensor]  # the keys of a table, of which this is the one row

    def best(self, k: int, coded: bool = False) -> tuple[Tensor, Tensor]:
        """The best scores and their slots, (T, L, K) each, the slot -1 where there is no candidate."""
        (G, R, L, D), found = self.q_GRLD.shape, None
        step = max(k, PAIRS // max(G * R * L, G * D if coded else 1))  # codes are unpacked
        for start in range(0, self.row.filled, step):
            stop = min(start + step, self.row.filled)
            seen_LS = self._candidates(start, stop)
            if not seen_LS.is_cuda and not torch.compiler.is_compiling() and not seen_LS.any():
                continue
            scores = self._scores(start, stop, coded).masked_fill_(~seen_LS, NONE)
            part = scores.topk(min(k, stop - start), dim=-1, sorted=False)
            values, slots = part.values, part.indices + start
            if found is not None:
                values, slots = torch.cat([found[0], values], -1), torch.cat([found[1], slots], -1)
                best = values.topk(min(k, values.shape[-1]), dim=-1, sorted=False)
                values, slots = best.values, slots.gather(-1, best.indices)
            found = values, slots
        if found is None:
            T = G if self.per == "group" else G * R
            none = self.q_GRLD.new_full((T, L, 1), NONE)
            found = none, torch.zeros_like(none, dtype=torch.long)
        return found[0], found[1].masked_fill(found[0] == NONE, -1)

    def by_signs(self, shortlist: int, k: int, everything: bool) -> Tensor:
        """The slots of the best keys of the best codes, (T, L, K); `everything`: by scores of all keys."""
        _, slots_TLN = self.best(shortlist, coded=True)
        if everything:
            scores_TLN = self._scores(0, self.row.filled, False).gather(-1, slots_TLN.clamp(min=0))
        else:
            keys_TLND = self.take(slots_TLN[None])[0]
            q_TRLD = self.q_GRLD if self.per == "group" else self.q_GRLD.flatten(0, 1)[:, None]
            scores_TLN = torch.einsum("trld,tlnd->trln", q_TRLD, keys_TLND).amax(1)
        scores_TLN = scores_TLN.masked_fill_(slots_TLN < 0, NONE)
        best = scores_TLN.topk(min(k, scores_TLN.shape[-1]), dim=-1)
        return slots_TLN.gather(-1, best.indices).masked_fill(best.values == NONE, -1)

    def _scores(self, start: int, stop: int, coded: bool) -> Tensor:
        """(T, L, S): by codes or by the keys themselves; the best of a group's heads, or each head's."""
        row = self.row
        if coded:
            assert row.centre is not None
            scores = score(self.q_GRLD, row.words.cut(start, stop), row.size.cut(start, stop), row.centre)
        else:
            parts = [torch.einsum("grld,gsd->grls", self.q_GRLD, part) for part in row.k.parts(start, stop)]
            scores = parts[0] if len(parts) == 1 else torch.cat(parts, -1)
        return scores.amax(1) if self.per == "group" else scores.flatten(0, 1)

    def _candidates(self, start: int, stop: int) -> Tensor:
        """(L, S): which of the slots are candidates of which query."""
        pos_S = self.row.pos.cut(start, stop)[0]
        seen_LS = (self.pos_L[:, None] >= pos_S + self.near) & (pos_S > self.after) & (pos_S >= 0)
        return seen_LS if self.ready is None else seen_LS & (self.pos_L[:, None] >= self.ready)
