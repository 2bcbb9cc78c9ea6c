"""A cache layer that keeps every key."""

from __future__ import annotations

from ..method import LongContextMethod
from .base import UnrotatedLayer
from .slots import KeyValues


class FullLayer(UnrotatedLayer):
    """Keeps every key. With `on_host` they live in host memory and visit the device one layer at a time."""

    def __init__(self, owner: LongContextMethod, on_host: bool = False) -> None:
        self.on_host = on_host
        super().__init__(owner)

    def keep(self, new: KeyValues) -> KeyValues:
        """Store `new` after the others; all may be seen."""
        if not self.on_host:
            readable = self.slots.then(new)
            self.store(readable)
            return readable
        readable = self.slots.map(lambda t: t.to(new.k.device, non_blocking=True)).then(new)
        self.store(self.slots.map(lambda t: t.cpu()).then(new.map(lambda t: t.cpu())))
        return readable

    def editable_view(self) -> KeyValues:
        """The text as it is kept, in order."""
        return self.slots

    def hold(self, text: KeyValues) -> None:
        """Keep the tokens of `text`, and nothing else."""
        self.seen = len(text)
        self.store(text)
