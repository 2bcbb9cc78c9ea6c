"""One row of a `Store`: its real tokens in the order of their arrival, with codes of their keys."""

# G key/value heads, L new tokens, S slots, T tokens of the text, D head dim
from __future__ import annotations

from collections.abc import Callable, Iterator
from functools import partial
from typing import Any

import torch
from torch import Tensor

from ..ops.codes import Centre
from ..ops.kernels.coding import able, coded, stored
from .growing import Growing
from .once import Apply
from .slots import KeyValues, show

AT_ONCE = 8192  # keys that are coded at once
Places = tuple[Growing, Growing]  # positions and columns of the text, by slot
# what codes are centred by, the position of the last key of these, and how many keys are coded
Codes = tuple[Centre | None, Tensor | None, int]


def made_places(paged: bool) -> Places:
    """Empty ones."""
    return Growing(paged=paged), Growing(paged=paged)


def _pieces(start: int, end: int, size: int) -> Iterator[tuple[int, int]]:
    """Slots that are coded at once: none of them in two pieces of this size, so that codes are written in place."""
    while start < end:
        stop = min(start + AT_ONCE, end, (start // size + 1) * size)
        yield start, stop
        start = stop


def _tokens(places: Growing) -> list[Any]:
    """For what tells the tokens that layers write to shared places in a forward, the first layer's first."""
    return []


def _write_places(places: Growing, start: int, new_BL: Tensor, row: int, real: Tensor | None) -> None:
    places.write(start, new_BL[row : row + 1] if real is None else new_BL[row : row + 1].index_select(1, real))


class StoreRow:
    """One row of a `Store`. Its slots are its real tokens in the order of their arrival, whatever padding came between.

    Args:
        centred_by: The row's first keys, of those shown, that its codes are centred by; before all of them are there,
            there are no codes. 0: there are none at all.
        paged: All of it lies in whole pages, whose addresses kernels are given.
        on_host: Keys and values are in host memory, in whole pages too.
        places: Its positions and columns, if other layers have read the same; None: they are its own.
    """

    def __init__(
        self, centred_by: int, *, paged: bool = False, on_host: bool = False, places: Places | None = None
    ) -> None:
        self.centred_by, self.paged, self.on_host = centred_by, paged, on_host
        self.filled = 0
        self.hides = False  # may some slots hold tokens that are not seen?
        self.k, self.v = (Growing(paged=paged, on_host=on_host) for _ in range(2))
        self.pos, self.column = made_places(paged) if places is None else places
        self._forget_codes()

    def _forget_codes(self) -> None:
        self.words, self.size = (Growing(paged=self.paged) for _ in range(2))
        self.coded = 0
        self.centre: Centre | None = None
        self.ready: Tensor | None = None  # the position of the last key that codes are centred by

    @classmethod
    def of(cls, keys: KeyValues, row: int, centred_by: int) -> StoreRow:
        """One row of keys and values as they are, padding included, without a copy."""
        made = cls(centred_by)
        made.k, made.v, made.pos = (Growing(x) for x in (keys.k[row], keys.v[row], keys.pos[row][None]))
        made.hides = True
        made._count(len(keys), made._encoded(len(keys)))
        return made

    def write(self, new: KeyValues, row: int, real: Tensor | None, once: Apply) -> Callable[[], None]:
        """Write the tokens of a row of `new`, those of the numbers `real` alone, where it is given.

        They count once the function that is returned is called: what fails before is written over. Places that layers
        share are written by the first one that gets the same tensors.
        """
        k_GLD, v_GLD = (x[row] if real is None else x[row].index_select(1, real) for x in (new.k, new.v))
        end = self.filled + k_GLD.shape[1]
        tokens = once(_tokens, self.pos)
        tokens.append((self.filled, id(new.pos), row, id(real)))
        if tokens[-1] != tokens[0]:  # a layer that reads other ones: from here on it goes by itself
            self.pos, self.column = (places.twin(self.filled) for places in (self.pos, self.column))
        for places, part in ((self.pos, new.pos), (self.column, new.column)):
            once(_write_places, places, self.filled, part, row, real)
        kept = self._stored(end, k_GLD, v_GLD, kept=True)
        if not kept:
            self.k.write(self.filled, k_GLD)
            self.v.write(self.filled, v_GLD)
        if kept or self._stored(end, k_GLD, v_GLD, kept=False):
            return partial(self._count, end, (self.centre, self.ready, end if self.centred_by else self.coded))
        return partial(self._count, end, self._encoded(end, k_GLD))

    def _stored(self, end: int, k_GLD: Tensor, v_GLD: Tensor, kept: bool) -> bool:
        """Put new tokens into pages in one launch, or only their codes, if that can be; else nothing has happened.

        Piece by piece it takes three launches for each, which in a chunk of some pages are most of what reading costs
        the host.
        """
        if not able(k_GLD) or (torch.is_grad_enabled() and (k_GLD.requires_grad or v_GLD.requires_grad)):
            return False
        if (self.centred_by and (self.centre is None or self.coded != self.filled)) or kept == self.on_host:
            return False
        names = [*(("k", "v") if kept else ()), *(("words", "size") if self.centred_by else ())]
        found = [getattr(self, name).pages(self.filled, end) for name in names]
        pages = [some for some in found if some is not None]
        if not found or len(pages) < len(found):
            return False
        if not kept:  # whose addresses are not looked at
            pages = [pages[0], pages[0], *pages]
            k_GLD = k_GLD.to(self.k.pieces[0].dtype)
        return stored(k_GLD, v_GLD, pages, self.filled % self.k.size, self.centre, kept)

    def _count(self, end: int, codes: Codes) -> None:
        self.filled = end
        self.centre, self.ready, self.coded = codes

    def room(self, more: int) -> list[tuple[Growing, int]]:
        """What must have room for `more` tokens so that keeping them allocates nothing, and how many slots it needs."""
        held = (getattr(self, name) for name in self._held())
        return [(growing, self.filled + more) for growing in held if growing.paged]

    @property
    def made(self) -> int:
        """Pieces that were made so far: while this stays, so do all addresses."""
        return sum(getattr(self, name).made for name in self._held())

    def _encoded(self, end: int, newest: Tensor | None = None) -> Codes:
        """Code the keys before slot `end` that have no code yet; `newest` are the last of them."""
        if not self.centred_by or end < self.centred_by or end == self.coded:
            return self.centre, self.ready, self.coded
        with torch.no_grad():
            centre, ready = (self.centre, self.ready) if self.centre is not None else self._centred(end, newest)
            if centre is None:
                return self.centre, self.ready, self.coded
            for start, stop in _pieces(self.coded, end, self.words.size):
                if newest is None or start < end - newest.shape[1]:
                    keys = self.k.cut(start, stop)
                else:  # what is at hand need not come from the host
                    keys = newest[:, start - end + newest.shape[1] : stop - end + newest.shape[1]]
                    keys = keys.to(self.k.pieces[0].dtype)
                into = self.words.within(start, stop), self.size.within(start, stop)
                if into[0] is not None and into[1] is not None:
                    coded(keys, centre, (into[0], into[1]))
                    continue
                words, size = coded(keys, centre)
                self.words.write(start, words)
                self.size.write(start, size)
        return centre, ready, end

    def _centred(self, end: int, newest: Tensor | None) -> tuple[Centre | None, Tensor | None]:
        """By the first keys that are shown, and the position of the last of them; None: there are too few.

        `newest` are the last keys before slot `end`. All of them at hand need not come from the host, which would wait.
        """
        pos_S = self.pos.cut(0, end)[0]
        first = (pos_S >= 0).nonzero()[:, 0] if self.hides else torch.arange(self.centred_by, device=pos_S.device)
        first = first[: self.centred_by]
        if len(first) < self.centred_by:
            return None, None
        if newest is not None and newest.shape[1] == end:
            keys = newest.index_select(1, first).to(self.k.pieces[0].dtype)
        else:
            keys = self.k.take(first.expand(len(self.k.pieces[0]), -1))
        return Centre.of(keys), pos_S[first[-1]]

    def show(self, mask_T: Tensor) -> None:
        """Hide and show tokens as an attention mask says. Codes are then centred as those of the row alone."""
        if not self.filled:
            return
        before, after = self._shown(mask_T)
        if torch.equal(before, after):
            return
        self.pos, self.hides = Growing(paged=self.paged), True
        self.pos.write(0, after)
        self._forget_codes()
        self._count(self.filled, self._encoded(self.filled))

    def shows(self, mask_T: Tensor) -> bool:
        """Whether a mask shows exactly the tokens that are shown now."""
        return not self.filled or torch.equal(*self._shown(mask_T))

    def _shown(self, mask_T: Tensor) -> tuple[Tensor, Tensor]:
        """(1, S) each: the positions as they are, and as an attention mask has them."""
        before = self.pos.cut(0, self.filled)
        return before, show(before, self.column.cut(0, self.filled), mask_T[None].to(before.device))

    def twin(self) -> StoreRow:
        """A row of its own with the same tokens; the pieces that are complete are shared."""
        twin = StoreRow(self.centred_by)  # what it makes is replaced
        vars(twin).update(vars(self))
        for name, filled in self._held().items():
            setattr(twin, name, getattr(self, name).twin(filled))
        return twin

    def _held(self) -> dict[str, int]:
        """The names of all that grows, and how many slots of each are filled."""
        return {**dict.fromkeys(("k", "v", "pos", "column"), self.filled), "words": self.coded, "size": self.coded}

    def pieces(self) -> list[Tensor]:
        """All tensors that it holds."""
        return [piece for name in self._held() for piece in getattr(self, name).pieces]
