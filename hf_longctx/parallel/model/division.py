"""`Division`: how the documents of one batch are divided among processes, on all ranks of a group or in several."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from ..layout import Layout
from .groups import Groups


@dataclass(frozen=True, eq=False)
class Division:
    """The documents of one batch among processes.

    Args:
        layout: Which of the processes with this batch has which tokens.
        own: The layout of those that attend together; the same one, unless `degree="auto"` has made several groups.
        groups: The processes of `own`.
        kind: How these exchange, or "auto".
    """

    layout: Layout
    own: Layout
    groups: Groups
    kind: str

    @classmethod
    def of(cls, lengths: Sequence[int], groups: Groups, kind: str, cut: str | int) -> Division:
        """All processes attend together."""
        layout = Layout.of(lengths, groups.size, cut)
        return cls(layout, layout, groups, kind)
