"""`Layout`: which rank holds which tokens of a pack of documents. Pure, the same on every rank, no communication."""

# T tokens of the pack, in its order; L rows of a rank
from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from itertools import accumulate

import torch
from torch import Tensor

from ..ops.masks import DOCUMENT
from .cutting import Piece, joined, placed

__all__ = ["Layout", "Piece"]


@dataclass(frozen=True)
class Layout:
    """Which rank holds which tokens of a pack of documents. `Layout.of` makes one.

    A rank's rows are its pieces in the order of the pack, so their places in the pack rise.

    Args:
        lengths: Tokens of each document; 0 is allowed.
        pieces: Of each rank, without empty ones.
    """

    lengths: tuple[int, ...]
    pieces: tuple[tuple[Piece, ...], ...]

    @classmethod
    def of(cls, lengths: Sequence[int], ranks: int, cut: str | int = "balance") -> Layout:
        """Share documents of any lengths among ranks. With fewer tokens than ranks some are left without any.

        Args:
            lengths: Tokens of each document.
            ranks: How many ranks share them.
            cut: Which documents are cut, by zigzag: each rank gets one chunk from the front and its counterpart from
                the back, which is the same work in causal attention. "balance": the longest ones, as few as bring the
                worst rank within 2 % of the mean of tokens and attention. "all": every one. A number: those of at
                least so many tokens. The others stay whole: the longest first, each to the rank with the least to do.
        """
        lengths = tuple(int(length) for length in lengths)
        if min(lengths, default=0) < 0:
            raise ValueError(f"lengths={list(lengths)}: expected the tokens of each document, 0 or more.")
        if ranks < 1:
            raise ValueError(f"ranks={ranks!r}: expected 1 or more.")
        if cut not in ("balance", "all") and not (isinstance(cut, int) and cut > 0):
            raise ValueError(f"cut={cut!r}: expected 'balance', 'all', or the fewest tokens of a document to be cut.")
        return cls(lengths, tuple(tuple(own) for own in placed(lengths, ranks, cut)))

    @property
    def ranks(self) -> int:
        """How many ranks share the pack."""
        return len(self.pieces)

    @cached_property
    def starts(self) -> tuple[int, ...]:
        """The place of each document's first token in the pack, and last the tokens of the pack."""
        return (0, *accumulate(self.lengths))

    @cached_property
    def sizes(self) -> tuple[int, ...]:
        """Rows of each rank."""
        return tuple(sum(stop - start for _, start, stop in own) for own in self.pieces)

    @cached_property
    def shared(self) -> frozenset[int]:
        """The documents that more than one rank has tokens of."""
        holders = [document for own in self.pieces for document in {piece.document for piece in own}]
        counts = torch.tensor(holders, dtype=torch.int64).bincount(minlength=len(self.lengths))
        return frozenset((counts > 1).nonzero()[:, 0].tolist())

    @cached_property
    def codes_T(self) -> Tensor:
        """The position of each token: `document * DOCUMENT + position`, as `Packed` wants them."""
        return ranges([(document * DOCUMENT, document * DOCUMENT + n) for document, n in enumerate(self.lengths)])

    @cached_property
    def places(self) -> tuple[Tensor, ...]:
        """The places in the pack of each rank's rows, (L,) each; they rise."""
        return tuple(
            ranges([(self.starts[document] + a, self.starts[document] + b) for document, a, b in own])
            for own in self.pieces
        )

    @cached_property
    def inverse_T(self) -> Tensor:
        """Where each token of the pack is among the rows of all ranks, one rank after the other."""
        inverse_T = torch.empty(self.starts[-1], dtype=torch.int64)
        inverse_T[torch.cat(self.places)] = torch.arange(self.starts[-1])
        return inverse_T

    @cached_property
    def owners_T(self) -> Tensor:
        """The rank that holds each token."""
        return torch.tensor(range(self.ranks)).repeat_interleave(torch.tensor(self.sizes))[self.inverse_T]

    @cached_property
    def shared_rows(self) -> tuple[Tensor, ...]:
        """The rows of each rank that are of a shared document: all that ever travels."""
        found = []
        for own in self.pieces:
            kept = torch.tensor([document in self.shared for document, _, _ in own], dtype=torch.bool)
            lengths = torch.tensor([stop - start for _, start, stop in own], dtype=torch.int64)
            found.append(kept.repeat_interleave(lengths).nonzero()[:, 0])
        return tuple(found)

    @cached_property
    def shared_sizes(self) -> tuple[int, ...]:
        """How many these are of each rank."""
        return tuple(map(len, self.shared_rows))

    def codes(self, rank: int) -> Tensor:
        """The positions of a rank's rows, (L,); see `codes_T`."""
        return self.codes_T[self.places[rank]]

    def halo(self, rank: int, window: int) -> Tensor:
        """The places in the pack, rising, of keys that a rank's rows see in such a window and that others hold."""
        need_T = torch.zeros(self.starts[-1], dtype=torch.bool)
        for document, start, _ in self.pieces[rank]:
            first = self.starts[document]
            need_T[first + max(0, start - window + 1) : first + start] = True
        need_T[self.places[rank]] = False
        return need_T.nonzero()[:, 0]

    def grouped(self, size: int) -> Layout:
        """The layout of groups of so many successive ranks, each of which holds what its ranks hold.

        Groups of a zigzag over ranks are a zigzag over groups.
        """
        if size < 1 or self.ranks % size:
            raise ValueError(f"size={size!r}: expected a divisor of the {self.ranks} ranks.")
        members = [self.pieces[first : first + size] for first in range(0, self.ranks, size)]
        return Layout(self.lengths, tuple(tuple(joined(sum(group, ()))) for group in members))


def ranges(pairs: Sequence[tuple[int, int]]) -> Tensor:
    """The numbers from the first to below the second of each pair, one after the other; int64."""
    starts_N, stops_N = torch.tensor(pairs, dtype=torch.int64).reshape(-1, 2).unbind(1)
    lengths_N = stops_N - starts_N
    before_N = lengths_N.cumsum(0) - lengths_N
    return (starts_N - before_N).repeat_interleave(lengths_N) + torch.arange(int(lengths_N.sum()))
