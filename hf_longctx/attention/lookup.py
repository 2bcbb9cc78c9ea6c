"""Looking tokens up: for each query the best keys of the text beyond its window, by the keys or by their codes.

A choice is made for one query from the tokens before it alone, so it does not depend on how a text is cut, padded or
cached.
"""

# B batch, H query heads, G key/value heads, R = H / G, L queries, S slots of a part of a row, D head dim, T = G or H
# tables, K slots of a table
from __future__ import annotations

from collections.abc import Callable, Iterator
from functools import partial
from typing import TYPE_CHECKING, Any, NamedTuple

import torch
from torch import Tensor

from ..cache.store import Store
from ..cache.store_row import StoreRow
from ..cache.visiting import keys_on_device
from ..ops.codes import score
from ..ops.kernels.lookup import FEW, unsupported_reason
from ..ops.pages import PAGE, Pages
from ..ops.rotation import Rotation

if TYPE_CHECKING:
    from ..ops.kernels.triton_lookup import Moved

PAIRS = 2**26  # numbers that are made at once
BLOCK = 256  # queries that are scored at once at most
NONE = float("-inf")
FAR = torch.iinfo(torch.long).max
MERGED = 8  # times as many as are wanted are kept of parts before the best of them are chosen
# many queries score all keys faster than they gather a shortlist of their own, up to so many times as many keys
ALL, ALL_ON_CPU, MANY = 16, 64, 16
LONG = 2 * PAGE  # slots of a row from which on kernels serve any number of queries (see `_worth`)


@torch.no_grad()
def choose(
    q_BHLD: Tensor,
    q_pos_BL: Tensor,
    store: Store,
    *,
    k: int,
    near: int,
    after_B: Tensor,
    by: str = "keys",
    per: str = "head",
    shortlist: int = 0,
    moved: Moved | None = None,
    asked_T: Tensor | None = None,
) -> Tensor:
    """For each query the slots of its best `k` tokens, (B, T, L, K), K at most k; -1 where there are fewer.

    Args:
        q_BHLD: Queries, moved to where they read keys that are left as they are.
        q_pos_BL: Their positions; -1 for padding, which looks up nothing.
        store: Where to look.
        k: How many.
        near: Tokens nearer than this are not looked up.
        after_B: Nor are those up to this position of a row: the first tokens.
        by: "keys": the best by their real keys. "signs": the best `shortlist` by their codes, and of these the best by
            their real keys.
        per: "head": a table for each query head. "group": one for the heads of a group, by the best of their scores.
        shortlist: See `by`.
        moved: See `move_and_choose`, which knows where it can be.
        asked_T: As in `triton_lookup.Shapes`: tables that nobody reads need not be made, and hold anything.
    """
    (B, H, L, _), G = q_BHLD.shape, store.heads
    pages = _searched_by_kernels(q_BHLD, store, by, per, shortlist)
    if pages is not None:
        from ..ops.kernels import bits, triton_keys, triton_lookup

        settings: dict[str, Any] = {"k": k, "near": near, "after_B": after_B, "per": per}
        if by == "keys":
            return triton_keys.choose(q_BHLD, q_pos_BL, pages, **settings)
        by_bits = bits.unsupported_reason(q_BHLD, pages, per) is None
        visiting = None  # copies, which are held until kernels that read them are on their way
        if L > FEW:  # not where a CUDA graph is recorded
            pages, visiting = keys_on_device(pages, store.rows, L * shortlist * (1 if per == "group" else H // G))
        table = triton_lookup.choose(
            q_BHLD, q_pos_BL, pages, shortlist=shortlist, **settings, by_bits=by_bits, moved=moved, asked_T=asked_T
        )
        del visiting
        return table
    assert moved is None
    width = max(1, min(k, _longest(store)))
    shape = (B, G if per == "group" else H, L, width)
    table = torch.full(shape, -1, dtype=torch.long, device=q_BHLD.device)
    for b, row in enumerate(store.rows):
        if by == "signs" and row.ready is None:
            continue  # a text too short to have codes has none that are far enough either
        ready = row.ready if by == "signs" else None
        # a shortlist of all needs no codes
        q_GRLD, coded = q_BHLD[b].unflatten(0, (G, -1)), by == "signs" and row.filled > shortlist
        most = (ALL if q_BHLD.is_cuda else ALL_ON_CPU) * shortlist
        everything = coded and L >= MANY and row.filled <= most
        # numbers of a query: the scores of all keys and codes, or its gathered keys
        wide = max(2 * H * row.filled if everything else shortlist * q_BHLD.shape[-1] * shape[1], 1) if coded else 1
        size = max(1, min(BLOCK, L, PAIRS // wide))
        pos_L = q_pos_BL[b]
        latest_L = pos_L - near if ready is None else torch.where(pos_L >= ready, pos_L - near, -1)
        for start, ranges in zip(range(0, L, size), _ranges(row, latest_L, after_B[b], size), strict=True):
            queries = slice(start, min(start + size, L))
            q, latest = q_GRLD[:, :, queries], latest_L[queries]
            search = _Search(q, latest, row, after_B[b], ranges, per, partial(store.take_keys, first=b))
            slots = search.by_signs(shortlist, width, everything) if coded else search.best(width)[1]
            table[b, :, queries, : slots.shape[-1]] = slots
    return table


def move_and_choose(
    q_BHLD: Tensor, rope: Rotation | None, q_pos_BL: Tensor, store: Store, *, by: str, per: str, shortlist: int,
    **settings: Any,
) -> tuple[Tensor, Tensor]:  # fmt: skip
    """Queries rotated by one angle to where they read what they find, and the table that `choose` makes for them.

    Where kernels search codes, the first of them rotates the queries.
    """
    settings |= {"by": by, "per": per, "shortlist": shortlist}
    if rope is None:
        return q_BHLD, choose(q_BHLD, q_pos_BL, store, **settings)
    kernels = by == "signs" and _searched_by_kernels(q_BHLD, store, by, per, shortlist) is not None
    if not kernels or not rope.by_kernel(q_BHLD):
        q = rope(q_BHLD)
        return q, choose(q, q_pos_BL, store, **settings)
    from ..ops.kernels.triton_lookup import Moved

    moved = Moved(rope.cos[0, 0], rope.sin[0, 0], torch.empty_like(q_BHLD, memory_format=torch.contiguous_format))
    return moved.out_BHLD, choose(q_BHLD, q_pos_BL, store, **settings, moved=moved)


def _searched_by_kernels(q_BHLD: Tensor, store: Store, by: str, per: str, shortlist: int) -> Pages | None:
    """The pages that kernels search for these queries; None: torch does it."""
    pages = store.pages() if by == "keys" or store.coded else None
    if pages is None or not _worth(q_BHLD.shape[2], store, by, shortlist):
        return None
    return pages if unsupported_reason(q_BHLD, pages, per, by) is None else None


def _worth(queries: int, store: Store, by: str, shortlist: int) -> bool:
    """Are kernels faster than torch for so many queries? They can do any number, some tens or hundreds at a time.

    By codes torch took up to 1.1 ms for 256 queries and each 8,192 slots (SmolLM2-135M on an H200, retrieval.json: 4.2
    s more than by keys, 122 pieces, 30 layers), for each shortlist is selected anew. A kernel scores a million slots in
    0.1 ms (lookup_kernels.json), but its launches take the host about as long however few slots there are, and come
    again for every 20 to 240 queries. So of two pieces or less torch does more than a few queries faster, and so it
    does of what it scores all at once (`everything`). How many queries there are changes little: both ways go through
    them in turn. Keys in host memory, which the kernels would fetch for every few queries again, visit the device once:
    page by page in torch, and all at once where a shortlist is scored (`visiting`).
    """
    if queries <= FEW:
        return True
    if by == "keys":
        return not store.rows[0].on_host and _longest(store) > LONG
    return _longest(store) > max(LONG, ALL * shortlist)


def _longest(store: Store) -> int:
    return max(row.filled for row in store.rows)


class _Ranges(NamedTuple):
    """The slots of a row at which a block of queries looks: from `first` to before `end`.

    Before `whole` all of them are candidates of every query of the block.
    """

    first: int
    whole: int
    end: int


def _ranges(row: StoreRow, latest_L: Tensor, after: Tensor, size: int) -> list[_Ranges]:
    """For each `size` queries, which look at tokens up to `latest_L`, what they have to look at."""
    blocks = -(-len(latest_L) // size)
    if torch.compiler.is_compiling():  # values cannot be looked at
        return [_Ranges(0, 0, row.filled)] * blocks
    pos_S = row.pos.cut(0, row.filled)[0]
    there_S = (pos_S > after) & (pos_S >= 0)
    pos_S = torch.where(there_S, pos_S, FAR)
    before_S = there_S.cumsum(0) == 0  # the first tokens
    lowest_S = pos_S.flip(0).cummin(0).values.flip(0)  # from a slot on
    highest_S = pos_S.masked_fill(before_S, -1).cummax(0).values  # up to a slot
    rest = latest_L[-1:].expand(blocks * size - len(latest_L))
    least_N, most_N = torch.cat([latest_L, rest]).view(blocks, size).aminmax(dim=1)
    end_N = torch.searchsorted(lowest_S, most_N, right=True)
    whole_N = torch.searchsorted(highest_S, least_N, right=True)
    found = torch.stack([before_S.sum().expand(blocks), whole_N, end_N], 1)
    return [_Ranges(*each) for each in found.tolist()]


class _Search(NamedTuple):
    """Some queries of one row, (G, R, L, D), which look at tokens up to `latest_L`, and where they look."""

    q_GRLD: Tensor
    latest_L: Tensor
    row: StoreRow
    after: Tensor
    ranges: _Ranges
    per: str
    take: Callable[[Tensor], Tensor]  # the keys of a table, of which this is the one row

    def best(self, k: int, coded: bool = False) -> tuple[Tensor, Tensor]:
        """The best scores and their slots, (T, L, K) each, the slot -1 where there is no candidate."""
        (G, R, L, D), found = self.q_GRLD.shape, []
        step = max(k, PAIRS // max(G * R * L, G * D if coded else 1))  # codes are unpacked
        for start, stop in self._cuts(self.row.words.size if coded else self.row.k.size, step):
            part = self._scores(start, stop, coded).topk(min(k, stop - start), dim=-1, sorted=False)
            found.append((part.values, part.indices + start))
            if sum(values.shape[-1] for values, _ in found) > MERGED * k:
                found = [_merged(found, k)]
        if not found:
            T = G if self.per == "group" else G * R
            none = self.q_GRLD.new_full((T, L, 1), NONE)
            found = [(none, torch.zeros_like(none, dtype=torch.long))]
        values, slots = _merged(found, k)
        return values, slots.masked_fill(values == NONE, -1)

    def _cuts(self, piece: int, step: int) -> Iterator[tuple[int, int]]:
        """From where to where slots are scored at once: in one piece of what holds them, which need not be copied."""
        start = self.ranges.first
        while start < self.ranges.end:
            stop = min(start + step, start - start % piece + piece, self.ranges.end)
            yield start, stop
            start = stop

    def by_signs(self, shortlist: int, k: int, everything: bool) -> Tensor:
        """The slots of the best keys of the best codes, (T, L, K); `everything`: by scores of all keys."""
        if everything and self.ranges.first < self.ranges.end:
            return self._by_all_keys(shortlist, k)
        _, slots_TLN = self.best(shortlist, coded=True)
        keys_TLND = self.take(slots_TLN[None])[0].to(self.q_GRLD.dtype)
        q_TRLD = self.q_GRLD if self.per == "group" else self.q_GRLD.flatten(0, 1)[:, None]
        scores_TLN = torch.einsum("trld,tlnd->trln", q_TRLD, keys_TLND).amax(1).masked_fill_(slots_TLN < 0, NONE)
        best = scores_TLN.topk(min(k, scores_TLN.shape[-1]), dim=-1)
        return slots_TLN.gather(-1, best.indices).masked_fill(best.values == NONE, -1)

    def _by_all_keys(self, shortlist: int, k: int) -> Tensor:
        """The same without a shortlist where the best keys of all turn out to be in it: few codes are as good."""
        first, _, end = self.ranges
        keys_TLS, codes_TLS = (self._scores(first, end, coded) for coded in (False, True))
        shortlist = min(shortlist, end - first)
        k = min(k, shortlist)

        def best_of(codes: Tensor, keys: Tensor) -> Tensor:
            among = codes.topk(shortlist, dim=-1, sorted=False).indices
            best = keys.gather(-1, among).topk(k, dim=-1)
            return among.gather(-1, best.indices).masked_fill(best.values == NONE, -1)

        if torch.compiler.is_compiling():  # how many are looked at again cannot be known
            slots_TLK = best_of(codes_TLS, keys_TLS)
        else:
            best = keys_TLS.topk(k, dim=-1)
            slots_TLK = best.indices.masked_fill(best.values == NONE, -1)
            least_TL1 = codes_TLS.gather(-1, best.indices).masked_fill_(slots_TLK < 0, -NONE).amin(-1, keepdim=True)
            outside_TL = (codes_TLS >= least_TL1).sum(-1) > shortlist  # of equal codes not all may be in it
            slots_TLK[outside_TL] = best_of(codes_TLS[outside_TL], keys_TLS[outside_TL])
        return torch.where(slots_TLK < 0, -1, slots_TLK + first)

    def _scores(self, start: int, stop: int, coded: bool) -> Tensor:
        """(T, L, S): by codes or by the keys themselves, -inf where a slot is no candidate.

        The best of a group's heads, or each head's.
        """
        row = self.row
        if coded:
            assert row.centre is not None
            scores = score(self.q_GRLD, row.words.cut(start, stop), row.size.cut(start, stop), row.centre)
        else:
            # kept under autocast, they may be of another dtype
            scores = torch.einsum("grld,gsd->grls", self.q_GRLD, row.k.cut(start, stop).to(self.q_GRLD.dtype))
        scores = scores.amax(1) if self.per == "group" else scores.flatten(0, 1)
        first = max(self.ranges.whole, start)
        if first < stop:
            scores[..., first - start :].masked_fill_(~self._candidates(first, stop), NONE)
        return scores

    def _candidates(self, start: int, stop: int) -> Tensor:
        """(L, S): which of the slots are candidates of which query."""
        pos_S = self.row.pos.cut(start, stop)[0]
        return (self.latest_L[:, None] >= pos_S) & (pos_S > self.after) & (pos_S >= 0)


def _merged(found: list[tuple[Tensor, Tensor]], k: int) -> tuple[Tensor, Tensor]:
    """The best k scores of several parts, and their slots."""
    if len(found) == 1:
        return found[0]
    values, slots = (torch.cat(parts, -1) for parts in zip(*found, strict=True))
    best = values.topk(min(k, values.shape[-1]), dim=-1, sorted=False)
    return best.values, slots.gather(-1, best.indices)
