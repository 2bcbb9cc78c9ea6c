"""Ulysses: heads for rows. Every rank attends all rows of a group with some of the heads, and gives the outputs back.

Jacobs et al., 2023 (arXiv 2309.14509), for any number of query heads that is not below the number of ranks. A
key/value head goes to those ranks only whose query heads read it. Backward exchanges queries and keys again instead of
keeping a second copy of them.
"""

# H query heads, G key/value heads, X heads of either, L rows of a rank, N rows of a group, D head dim
from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from functools import cached_property
from math import prod

import torch
from torch import Tensor

from .blocks import RankResults, RankTensors
from .exchange import Exchange
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
        _ = self._order

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

    @cached_property
    def _order(self) -> tuple[Tensor, Tensor]:
        """The members' rows, one member after the other, in the order of the group's rows; and the way back."""
        order_N = torch.cat([self.layout.places[member] for member in self.members]).argsort()
        back_N = torch.empty_like(order_N)
        back_N[order_N] = torch.arange(len(order_N))
        return order_N.to(self.device, non_blocking=True), back_N.to(self.device, non_blocking=True)

    def _rows_for_heads(self, tensors: Sequence[tuple[Tensor, Heads]]) -> list[Tensor]:
        """(X, L, D) of each member, and who gets which heads: (X of this rank, N, D) in the order of the group."""
        ranks, mine = range(self.peers.size), self.peers.rank
        parts = [[x[start:stop] for x, heads in tensors for start, stop in heads[rank : rank + 1]] for rank in ranks]
        shapes: list[list[Shape]] = [
            [(heads[mine][1] - heads[mine][0], self.layout.sizes[member], x.shape[2]) for x, heads in tensors]
            for member in self.members
        ]
        came = self._exchange(parts, shapes)
        return [torch.cat(members, 1)[:, self._order[0]] for members in zip(*came, strict=True)]

    def _heads_for_rows(self, tensors: Sequence[tuple[Tensor, Heads]]) -> list[Tensor]:
        """The way back: (X of this rank, N, D) to (X, L, D), a head that several ranks had as the sum of theirs."""
        sizes = [self.layout.sizes[member] for member in self.members]
        split = [x[:, self._order[1]].split(sizes, 1) for x, _ in tensors]
        parts = [list(to_rank) for to_rank in zip(*split, strict=True)]
        rows = sizes[self.peers.rank]
        shapes: list[list[Shape]] = [
            [(heads[rank][1] - heads[rank][0], rows, x.shape[2]) for x, heads in tensors]
            for rank in range(self.peers.size)
        ]
        came = zip(*self._exchange(parts, shapes), strict=True)
        return [_heads_of_all(list(found), heads) for found, (_, heads) in zip(came, tensors, strict=True)]

    def _exchange(self, parts: list[list[Tensor]], shapes: list[list[Shape]]) -> list[list[Tensor]]:
        """Some tensors of one dtype to each rank, in one exchange, and those of such shapes from each."""
        send = [sum(x.numel() for x in to_rank) for to_rank in parts]
        receive = [sum(map(prod, from_rank)) for from_rank in shapes]
        flat = torch.cat([x.reshape(-1) for to_rank in parts for x in to_rank])
        came = self.peers.exchange(flat, send, receive)().split(receive)
        return [
            [x.view(shape) for x, shape in zip(one.split([prod(shape) for shape in wanted]), wanted, strict=True)]
            for one, wanted in zip(came, shapes, strict=True)
        ]


def _heads_of_all(found: list[Tensor], heads: Heads) -> Tensor:
    """(X, L, D) of all heads, from those of each rank; a head that several had is the sum of theirs."""
    if sum(len(part) for part in found) == heads[-1][1]:
        return torch.cat(found)
    total = found[0].new_zeros(heads[-1][1], *found[0].shape[1:])
    for part, (start, stop) in zip(found, heads, strict=True):
        total[start:stop] += part
    return total
