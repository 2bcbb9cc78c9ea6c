"""`Ranks`: a layout on its processes, which all layers of a forward share."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch

from ..ops.masks import Causal, Full, Mask, Window
from .exchange import Exchange
from .gather import GatherExchange
from .halo import HaloExchange
from .hybrid import hybrid
from .layout import Layout
from .peers import Peers
from .ring import RingExchange

KINDS = ("ring", "gather", "ulysses", "hybrid")


class Ranks:
    """A layout on its processes, which all layers of a forward share. Keep it alive until the backward pass has ended.

    Args:
        layout: Which rank holds which tokens.
        kind: How ranks exchange: "ring", "gather", "ulysses", or "hybrid", which is Ulysses in the group `inner`. With
            a window, ring and gather fetch the halo only.
        group: The process group of the layout's ranks; for "hybrid" that of the ranks with this rank's number in every
            `inner` group. None: the default one; a layout of one rank needs none.
        inner: For "hybrid", the process group of this rank's host, of ranks that follow each other.
        outside: For "hybrid", the exchange among hosts: "ring" or "gather".
        device: Where the tensors will be.
    """

    def __init__(
        self,
        layout: Layout,
        kind: str = "ring",
        group: Any = None,
        inner: Any = None,
        outside: str = "ring",
        device: torch.device | str = "cpu",
    ) -> None:
        if kind not in KINDS:
            raise ValueError(f"kind={kind!r}: expected one of {', '.join(KINDS)}.")
        if (inner is not None) != (kind == "hybrid"):
            raise ValueError(f"kind={kind!r} with inner={inner!r}: expected an inner group for 'hybrid', and no other.")
        if outside not in ("ring", "gather"):
            raise ValueError(f"outside={outside!r}: expected 'ring' or 'gather'.")
        self.layout, self.kind, self.outside, self.device = layout, kind, outside, torch.empty(0, device=device).device
        self._outer = Peers(group, alone=layout.ranks == 1)
        self._inner = Peers(inner, alone=inner is None)
        size = self._outer.size * self._inner.size
        if size != layout.ranks:
            raise ValueError(f"the layout has {layout.ranks} ranks, the groups {size}. Make it for that many.")
        self.rank = self._outer.rank * self._inner.size + self._inner.rank
        self._exchanges: dict[Mask, Exchange] = {}

    def exchange(self, inside: Mask) -> Exchange:
        """How these ranks share attention under a mask: the same object for the same mask."""
        if inside not in self._exchanges:
            if not isinstance(inside, Causal | Window | Full):
                raise ValueError(f"inside={inside!r}: ranks share attention under Causal, Window or Full only.")
            self._exchanges[inside] = self._make(inside)
        return self._exchanges[inside]

    def prepare(self, *insides: Mask) -> None:
        """Make what the layers with these masks share, and copy it to the device; else the first such layer does."""
        for inside in insides:
            self.exchange(inside).prepare()

    def _make(self, inside: Mask) -> Exchange:
        def by(kind: str) -> Callable[[Layout, Peers], Exchange]:
            cls = HaloExchange if isinstance(inside, Window) else {"ring": RingExchange, "gather": GatherExchange}[kind]
            return lambda layout, peers: cls(layout, peers, inside, self.device)

        if self.kind == "hybrid":
            return hybrid(self.layout, self._outer, self._inner, by(self.outside))
        if self.kind == "ulysses":  # one host of all ranks
            return hybrid(self.layout, Peers(alone=True), self._outer, by("ring"))
        return by(self.kind)(self.layout, self._outer)
