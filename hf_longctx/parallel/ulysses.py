"""Ulysses: heads for rows. Every rank attends all rows of a group with some of the heads, and gives the outputs back.

Jacobs et al., 2023 (arXiv 2309.14509), for any number of query heads that is not below the number of ranks. A
key/value head goes to those ranks only whose query heads read it. Backward exchanges queries and keys again instead of
keeping a second copy of them.
"""

# H query heads, G key/value heads, X heads of either, L rows of a rank, N rows of a group, D head dim
from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from math import prod

import torch
from torch import Tensor

from .blocks import RankResults, RankTensors
from .exchange import Exchange
from .group_rows import GroupRows
from .layout import Layout
from .peers import Peers

Shape = tuple[int, ...]
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

    def forward(self, given: RankTensors, kept: list[Tensor] | None = None) -> tuple[Tensor, Tensor]:
        """See `Exchange`."""
        assert given.groups is None, "Ulysses is the outermost exchange"
        q_HLD, k_GLD, v_GLD = given.q_BHLD[0], given.k_BGLD[0], given.v_BGLD[0]
        own, read = self._heads(len(q_HLD), len(k_GLD))
        q, k, v = self._rows_for_heads([(q_HLD, own), (k_GLD, read), (v_GLD, read)])
        ragged = self._ragged(len(q_HLD), len(k_GLD))
        out, lse = self.outside.forward(RankTensors(q[None], k[None], v[None], given.scale, ragged))
        (out_HLD,) = self._heads_for_rows([(out[0].transpose(0, 1), own)])
        (lse_HL1,) = self._heads_for_rows([(lse[0, ..., None], own)])
        return out_HLD.transpose(0, 1)[None].contiguous(), lse_HL1[None, ..., 0].contiguous()

    def backward(self, given: RankTensors, found: RankResults) -> tuple[Tensor, Tensor, Tensor]:
        """See `Exchange`."""
        q_HLD, k_GLD, v_GLD = given.q_BHLD[0], given.k_BGLD[0], given.v_BGLD[0]
        own, read = self._heads(len(q_HLD), len(k_GLD))
        by_row = (x[0].transpose(0, 1).to(q_HLD.dtype) for x in (found.grad_BLHD, found.out_BLHD))
        by_head = [(x, own) for x in (q_HLD, *by_row)] + [(k_GLD, read), (v_GLD, read)]
        q, grad, out, k, v = self._rows_for_heads(by_head)
        (lse,) = self._rows_for_heads([(found.lse_BHL[0, ..., None], own)])
        ragged = self._ragged(len(q_HLD), len(k_GLD))
        seen = RankTensors(q[None], k[None], v[None], given.scale, ragged)
        whole = RankResults(grad.transpose(0, 1)[None], out.transpose(0, 1)[None], lse[None, ..., 0])
        dq, dk, dv = (x[0] for x in self.outside.backward(seen, whole))
        if sum(stop - start for start, stop in read) == len(k_GLD):  # each head is read by one rank: no sums
            dk, dv = dk.to(k_GLD.dtype), dv.to(v_GLD.dtype)
        (dq,) = self._heads_for_rows([(dq.to(q_HLD.dtype), own)])
        dk, dv = self._heads_for_rows([(dk, read), (dv, read)])
        return dq[None], dk[None], dv[None]

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

    def _rows_for_heads(self, tensors: Sequence[tuple[Tensor, Heads]]) -> list[Tensor]:
        """(X, L, D) of each member, and who gets which heads: (X of this rank, N, D) in the order of the group."""
        ranks, mine = range(self.peers.size), self.peers.rank
        parts = [[[x[slice(*heads[rank])]] for x, heads in tensors] for rank in ranks]
        shapes: list[list[Shape]] = [
            [(heads[mine][1] - heads[mine][0], self.layout.sizes[member], x.shape[2]) for x, heads in tensors]
            for member in self.members
        ]
        return [
            self._rows.of_members(found) for found in zip(*self._exchange(tensors[0][0], parts, shapes), strict=True)
        ]

    def _heads_for_rows(self, tensors: Sequence[tuple[Tensor, Heads]]) -> list[Tensor]:
        """The way back: (X of this rank, N, D) to (X, L, D), a head that several ranks had as the sum of theirs."""
        parts = [list(to_rank) for to_rank in zip(*(self._rows.by_member(x) for x, _ in tensors), strict=True)]
        rows = self.layout.sizes[self.members[self.peers.rank]]
        shapes: list[list[Shape]] = [
            [(heads[rank][1] - heads[rank][0], rows, x.shape[2]) for x, heads in tensors]
            for rank in range(self.peers.size)
        ]
        came = zip(*self._exchange(tensors[0][0], parts, shapes), strict=True)
        return [_heads_of_all(found, heads) for found, (_, heads) in zip(came, tensors, strict=True)]

    def _exchange(self, like: Tensor, parts: list[list[list[Tensor]]], shapes: list[list[Shape]]) -> list[list[Tensor]]:
        """Tensors, of the dtype of `like`, in stretches of rows to each rank, and those of such shapes from each."""
        send = [sum(x.numel() for stretches in to_rank for x in stretches) for to_rank in parts]
        receive = [sum(map(prod, from_rank)) for from_rank in shapes]
        flat, at = like.new_empty(sum(send)), 0
        for stretches in (one for to_rank in parts for one in to_rank if one):
            shape = stretches[0].shape[0], sum(x.shape[1] for x in stretches), stretches[0].shape[2]
            # copied once, where others would be made contiguous first
            torch.cat(stretches, 1, out=flat.narrow(0, at, prod(shape)).view(shape))
            at += prod(shape)
        came = self.peers.exchange(flat, send, receive)().split(receive)
        return [
            [x.view(shape) for x, shape in zip(one.split([prod(shape) for shape in wanted]), wanted, strict=True)]
            for one, wanted in zip(came, shapes, strict=True)
        ]


def _heads_of_all(found: Sequence[Tensor], heads: Heads) -> Tensor:
    """(X, L, D) of all heads, row by row in memory, from those of each rank; the sum, where several had a head."""
    _, L, D = found[0].shape
    several = sum(len(part) for part in found) > heads[-1][1]
    total_LXD = (found[0].new_zeros if several else found[0].new_empty)(L, heads[-1][1], D)
    for part, (start, stop) in zip(found, heads, strict=True):
        own = total_LXD[:, start:stop]
        own.add_(part.transpose(0, 1)) if several else own.copy_(part.transpose(0, 1))
    return total_LXD.transpose(0, 1)
