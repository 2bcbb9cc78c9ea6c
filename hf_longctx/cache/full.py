"""A cache layer that keeps every key."""

from __future__ import annotations

from .base import UnrotatedLayer
from .slots import KeyValues


class FullLayer(UnrotatedLayer):
    """Keeps every key."""

    def keep(self, new: KeyValues) -> KeyValues:
        """Store `new` after the others; all may be seen."""
        readable = self.slots.then(new, self.once)
        self.store(readable)
        return readable

    def editable_view(self) -> KeyValues:
        """The text as it is kept, in order."""
        return self.slots

    def hold(self, text: KeyValues) -> None:
        """Keep the tokens of `text`, and nothing else."""
        self.seen = len(text)
        self.store(text)
