"""The layouts of a plan: of every group by itself, and of all ranks together."""

from __future__ import annotations

from collections.abc import Sequence

from ..cutting import Piece
from ..layout import Layout
from .plan import Group


def laid_out(
    lengths: Sequence[int], plan: Sequence[Group], cut: str | int, capacity: int | None = None
) -> tuple[Layout, list[Layout]]:
    """The layout of all ranks, and that of each group, whose documents are numbered within the group.

    Args:
        lengths: Tokens of each document.
        plan: Groups that have all of them.
        cut: Which documents a group cuts, see `Layout.of`. Where that gives a rank more than it can hold, all.
        capacity: The most tokens of a rank; None: as many as there are.
    """
    pieces: list[tuple[Piece, ...]] = []
    own = []
    for group in plan:
        of_group = [lengths[n] for n in group.documents]
        layout = Layout.of(of_group, len(group.ranks), cut)
        if capacity is not None and max(layout.sizes) > capacity:
            layout = Layout.of(of_group, len(group.ranks), "all")
        own.append(layout)
        for of_rank in layout.pieces:
            pieces.append(tuple(piece._replace(document=group.documents[piece.document]) for piece in of_rank))
    return Layout(tuple(lengths), tuple(pieces)), own
