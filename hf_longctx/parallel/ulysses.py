"""Ulysses: heads for rows. Every rank attends all rows of a group with some of the heads, and gives the outputs back.

Jacobs et al., 2023 (arXiv 2309.14509), for any number of query heads that is not below the number of ranks. A
key/value head goes to those ranks only whose query heads read it. Backward exchanges queries and keys again instead of
keeping a second copy of them.
"""

# H query heads, G key/value heads, X heads of either, L rows of a rank, N rows of a group, D head dim
from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from .blocks import RankResults, RankTensors, as_dtype
from .exchange import Exchange
from .group_rows import GroupRows
from .layout import Layout
from .peers import Peers

Heads = list[tuple[int, int]]  # from the first to below the second, for each rank


class UlyssesExchange(Exchange):
    """See the module.

    Args:
        layout: Of all ranks; those of a group follow each other.
        peers: The group of this rank.
        outside: Exchange among groups, of the layout of groups; a single group has nothing to exchange.
        group: Which group this is.
    """

    def __init__(self, layout: Layout, peers: Peers, outside: Exchange, group: int) -> None:
        super().__init__(layout, peers, outside.inside, outside.device)
        self.outside = outside
        self.members = range(group * peers.size, (group + 1) * peers.size)
        self._rows = GroupRows([layout.places[member] for member in self.members], outside.device)
        self._shares: dict[tuple[int, int], HeadShare] = {}

    def forward(self, given: RankTensors, kept: list[Tensor] | None = None) -> tuple[Tensor, Tensor]:
        """See `Exchange`."""
        assert given.groups is None, "Ulysses is the outermost exchange"
        share = self._share(given)
        q, k, v = share.by_head(self._rows.to_pack(self._rows_for_heads(_rows(given), share.qkv)))
        out, lse = self.outside.forward(RankTensors(q, k, v, given.scale, share.ragged))
        if kept is not None:
            kept.append(lse)
        # in one exchange: the numbers of the log-sum-exp as so many of the output's dtype
        bits_NX2 = lse[0].transpose(0, 1).unsqueeze(2).view(out.dtype)
        sizes = [out.shape[3], bits_NX2.shape[2]]
        came = (part.split_with_sizes(sizes, 2) for part in self._come(torch.cat([out[0], bits_NX2], 2), [share.own]))
        out_LHD, bits_LH2 = (_heads_of_all(parts, share.own) for parts in zip(*came, strict=True))
        return out_LHD.unsqueeze(0), bits_LH2.view(lse.dtype).transpose(0, 1).squeeze(2).unsqueeze(0).contiguous()

    def backward(self, given: RankTensors, found: RankResults) -> tuple[Tensor, Tensor, Tensor]:
        """See `Exchange`."""
        share, dtype = self._share(given), given.q_BHLD.dtype
        every = [x.transpose(1, 2) for x in self.outside.backward(*self._again(given, found, share))]
        every[0] = as_dtype(every[0], dtype)
        if not share.several:
            every = [as_dtype(x, dtype) for x in every]
        if every[0].dtype == every[1].dtype:
            grads_NXD = torch.cat(every, 2)[0]
            every.clear()  # memory is highest here
            grads = self._heads_for_rows(grads_NXD, share.qkv)
        else:  # the sums over ranks of those of keys are wide
            dq_BNXD, *of_keys = every
            keys_NXD = torch.cat(of_keys, 2)[0]
            del every, of_keys
            grads = self._heads_for_rows(dq_BNXD[0], [share.own]) + self._heads_for_rows(keys_NXD, share.qkv[1:])
        dq, dk, dv = (x.unsqueeze(0).transpose(1, 2) for x in grads)
        return dq, dk, dv

    def _again(self, given: RankTensors, found: RankResults, share: HeadShare) -> tuple[RankTensors, RankResults]:
        """What the exchange among groups had in the forward pass, and what it gave."""
        results = [as_dtype(x[0], given.q_BHLD.dtype) for x in (found.grad_BLHD, found.out_BLHD)]
        came = self._rows_for_heads([*_rows(given), *results], [*share.qkv, share.own, share.own])
        # kernels want outputs and their gradients in memory of their own
        widths = [share.queries + 2 * share.keys, share.queries, share.queries]
        rows, grad, out = map(self._rows.to_pack, came.split_with_sizes(widths, 1))
        seen = RankTensors(*share.by_head(rows), given.scale, share.ragged)
        return seen, RankResults(grad[None], out[None], self._lse(found, share))

    def _lse(self, found: RankResults, share: HeadShare) -> Tensor:
        """The log-sum-exp (1, X of this rank, N), which the forward may have kept."""
        if found.kept:
            return found.kept[0]
        lse = self._rows.to_pack(self._rows_for_heads([found.lse_BHL[0].transpose(0, 1)[..., None]], [share.own]))
        return lse[None, ..., 0].transpose(1, 2)

    def prepare(self) -> None:
        """See `Exchange`."""
        self.outside.prepare()
        self._rows.prepare()

    def _heads(self, queries: int, keys: int) -> tuple[Heads, Heads]:
        """The query heads of each rank of the group, and the key/value heads that these read."""
        size = self.peers.size
        if queries < size:
            raise ValueError(
                f"Ulysses shares {queries} query heads among {size} ranks: expected at least one for each. "
                "Use kind='ring' or 'gather', or 'hybrid' with fewer ranks inside."
            )
        own = [(queries * rank // size, queries * (rank + 1) // size) for rank in range(size)]
        return own, [(start * keys // queries, (stop - 1) * keys // queries + 1) for start, stop in own]

    def _ragged(self, queries: int, keys: int) -> tuple[int, ...] | None:
        """How many of this rank's query heads read each of its key/value heads; None: as many for all."""
        own, read = (heads[self.peers.rank] for heads in self._heads(queries, keys))
        counts = Counter(head * keys // queries for head in range(*own))
        groups = tuple(counts[head] for head in range(*read))
        return None if len(set(groups)) == 1 else groups

    def _share(self, given: RankTensors) -> HeadShare:
        """Who has which heads: the same for all layers with as many."""
        heads = given.q_BHLD.shape[1], given.k_BGLD.shape[1]
        if heads not in self._shares:
            own, read = self._heads(*heads)
            mine = own[self.peers.rank], read[self.peers.rank]
            self._shares[heads] = HeadShare(own, read, _width(mine[0]), _width(mine[1]), heads[1], self._ragged(*heads))
        return self._shares[heads]

    def _rows_for_heads(self, tensors: Sequence[Tensor], heads: Sequence[Heads]) -> Tensor:
        """(L, X, D) of each tensor, and who gets which heads: (N, X of this rank, D), by member.

        X are the heads of one tensor after those of the other.
        """
        L, _, D = tensors[0].shape
        parts = list(zip(*map(_cut, tensors, heads), strict=True))
        widths = [sum(_width(of_each[rank]) for of_each in heads) for rank in range(self.peers.size)]
        send = [L * width * D for width in widths]
        width = widths[self.peers.rank]
        receive = [size * width * D for size in self._rows.sizes]
        flat = tensors[0].new_empty(sum(send))
        for to_rank, place, heads_of_rank in zip(parts, flat.split_with_sizes(send), widths, strict=True):
            # copied once, where others would be made contiguous first
            torch.cat(to_rank, 1, out=place.view(L, heads_of_rank, D))
        return self.peers.exchange(flat, send, receive, ahead=False)().view(sum(self._rows.sizes), width, D)

    def _heads_for_rows(self, x_NXD: Tensor, heads: Sequence[Heads]) -> list[Tensor]:
        """The way back: (N, X of this rank, D) to (L, X, D) of each tensor.

        A head that several ranks had is the sum of theirs.
        """
        widths = [[_width(of_each[rank]) for of_each in heads] for rank in range(self.peers.size)]
        split = (
            part.split_with_sizes(of_rank, 1) for part, of_rank in zip(self._come(x_NXD, heads), widths, strict=True)
        )
        return [_heads_of_all(found, of_each) for found, of_each in zip(zip(*split, strict=True), heads, strict=True)]

    def _come(self, x_NXD: Tensor, heads: Sequence[Heads]) -> list[Tensor]:
        """What the way back brings from each rank: (L, X of that rank, D), with the heads of the tensors in turn."""
        _, X, D = x_NXD.shape
        L = self._rows.sizes[self.peers.rank]
        widths = [sum(_width(of_each[rank]) for of_each in heads) for rank in range(self.peers.size)]
        send = [size * X * D for size in self._rows.sizes]
        receive = [L * width * D for width in widths]
        flat = self._rows.to_members(x_NXD).flatten()
        came = self.peers.exchange(flat, send, receive, ahead=False)().split_with_sizes(receive)
        return [one.view(L, width, D) for one, width in zip(came, widths, strict=True)]


class HeadShare(NamedTuple):
    """Who has which heads.

    Args:
        own: The query heads of each rank.
        read: The key/value heads that these read.
        queries: How many query heads this rank has.
        keys: How many key/value heads.
        of_all: How many key/value heads there are.
        ragged: How many of this rank's query heads read each of its key/value heads; None: as many for all.
    """

    own: Heads
    read: Heads
    queries: int
    keys: int
    of_all: int
    ragged: tuple[int, ...] | None

    @property
    def qkv(self) -> list[Heads]:
        """The heads of queries, keys and values."""
        return [self.own, self.read, self.read]

    @property
    def several(self) -> bool:
        """Is a key/value head read by several ranks?"""
        return sum(map(_width, self.read)) > self.of_all

    def by_head(self, rows_NXD: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Queries, keys and values (1, heads, N, D) of this rank's heads; the same memory."""
        q, k, v = rows_NXD[None].transpose(1, 2).split_with_sizes([self.queries, self.keys, self.keys], 1)
        return q, k, v


def _rows(given: RankTensors) -> list[Tensor]:
    """Queries, keys and values, row by row: (L, heads, D)."""
    return [x[0].transpose(0, 1) for x in (given.q_BHLD, given.k_BGLD, given.v_BGLD)]


def _width(heads: tuple[int, int]) -> int:
    return heads[1] - heads[0]


def _cut(x_LXD: Tensor, heads: Heads) -> Sequence[Tensor]:
    """The heads of each rank."""
    sizes = list(map(_width, heads))
    if sum(sizes) == x_LXD.shape[1]:
        return x_LXD.split_with_sizes(sizes, 1)
    return [x_LXD.narrow(1, start, size) for (start, _), size in zip(heads, sizes, strict=True)]


def _heads_of_all(found: Sequence[Tensor], heads: Heads) -> Tensor:
    """(L, X, D) of all heads from those of each rank; the sum, where several had a head."""
    total, (L, _, D) = heads[-1][1], found[0].shape
    if sum(map(_width, heads)) == total:
        return torch.cat(list(found), 1)
    total_LXD = found[0].new_zeros(L, total, D)
    for part, (start, stop) in zip(found, heads, strict=True):
        total_LXD[:, start:stop] += part
    return total_LXD
