"""Which packed documents are cut over all ranks, and which rank holds each of the others. Pure: all ranks agree."""

from __future__ import annotations

import heapq
from collections.abc import Iterable, Sequence
from typing import NamedTuple

# What a token costs in everything but attention, in (query, key) pairs of attention. A Llama of 1.24B parameters on an
# H100, full recomputation, spends 18.2 us on a token and 2.32 ns on a pair in flash attention's varlen form.
TOKEN_IN_PAIRS = 7850
SLACK = 50  # the worst rank may cost a 50th more than the mean: 2 %


class Piece(NamedTuple):
    """The tokens `start` to below `stop` of a document."""

    document: int
    start: int
    stop: int

    @property
    def cost(self) -> int:
        """Tokens and causal attention, in pairs; whole numbers, so that all ranks agree."""
        tokens = self.stop - self.start
        return TOKEN_IN_PAIRS * tokens + tokens * (self.start + self.stop + 1) // 2


def placed(lengths: Sequence[int], ranks: int, cut: str | int) -> list[list[Piece]]:
    """The pieces of each rank.

    Args:
        lengths: Tokens of each document.
        ranks: How many ranks share them.
        cut: "balance", "all", or the fewest tokens of a document that is cut; see `Layout.of`.
    """
    longest_first = sorted(range(len(lengths)), key=lambda document: -lengths[document])
    if ranks == 1:
        return [[Piece(document, 0, length) for document, length in enumerate(lengths) if length]]
    if cut == "balance":
        return _balanced(lengths, longest_first, ranks)
    least = 1 if cut == "all" else int(cut)
    long = sum(length >= least for length in lengths)
    pieces = _zigzag(lengths, sorted(longest_first[:long]), ranks)
    _add_whole(pieces, lengths, longest_first[long:], limit=None)
    return pieces


def _balanced(lengths: Sequence[int], longest_first: Sequence[int], ranks: int) -> list[list[Piece]]:
    """As few of the longest documents are cut as bring the worst rank within 2 % of the mean, or near to it."""
    total = sum(Piece(0, 0, length).cost for length in lengths)
    limit = (total + total // SLACK) // ranks
    best: tuple[int, list[list[Piece]]] | None = None
    for long in range(len(lengths) + 1):
        left = longest_first[long:]
        if left and Piece(0, 0, lengths[left[0]]).cost > limit:
            continue  # whole, this one alone is too much
        pieces = _zigzag(lengths, sorted(longest_first[:long]), ranks)
        worst = _add_whole(pieces, lengths, left, limit if best else None)
        if worst is not None and worst <= limit:
            return pieces
        if worst is not None and (best is None or worst < best[0]):
            best = worst, pieces
    assert best is not None
    return best[1]


def _zigzag(lengths: Sequence[int], documents: Iterable[int], ranks: int) -> list[list[Piece]]:
    """Each document in 2 P chunks as equal as can be, of which rank r gets the r-th from the front and from the back.

    Tokens that are left over go to one chunk after the other, and the next document goes on where this one stopped.
    """
    pieces: list[list[Piece]] = [[] for _ in range(ranks)]
    turn = 0
    for document in documents:
        base, rest = divmod(lengths[document], 2 * ranks)
        edges = [0]
        for chunk in range(2 * ranks):
            edges.append(edges[-1] + base + ((chunk - turn) % (2 * ranks) < rest))
        turn += rest
        for rank, own in enumerate(pieces):
            front = Piece(document, edges[rank], edges[rank + 1])
            back = Piece(document, edges[-2 - rank], edges[-1 - rank])
            own.extend(joined([piece for piece in (front, back) if piece.stop > piece.start]))
    return pieces


def joined(pieces: Iterable[Piece]) -> list[Piece]:
    """Pieces in the order of the pack; those that continue each other as one."""
    found: list[Piece] = []
    for piece in sorted(pieces):
        if found and found[-1].document == piece.document and found[-1].stop == piece.start:
            found[-1] = Piece(piece.document, found[-1].start, piece.stop)
        else:
            found.append(piece)
    return found


def _add_whole(
    pieces: list[list[Piece]], lengths: Sequence[int], longest_first: Sequence[int], limit: int | None
) -> int | None:
    """Add whole documents, each to the rank that costs least so far. The worst rank's cost; None: over the limit."""
    heap = [(sum(piece.cost for piece in own), rank) for rank, own in enumerate(pieces)]
    heapq.heapify(heap)
    worst = max(heap)[0]
    for document in longest_first:
        if not lengths[document]:
            break
        cost, rank = heap[0]
        piece = Piece(document, 0, lengths[document])
        pieces[rank].append(piece)
        heapq.heapreplace(heap, (cost + piece.cost, rank))
        worst = max(worst, cost + piece.cost)
        if limit is not None and worst > limit:
            return None
    for own in pieces:
        own.sort()
    return worst
