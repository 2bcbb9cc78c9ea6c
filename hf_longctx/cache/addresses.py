"""Where the tokens of a store lie, in tensors that stay where they are: a recorded CUDA graph reads and writes by them.

Growing by a page changes an entry. Only when the entries are used up, which is after a quarter of the text more (or
four pages), are the tensors made again, and a graph that has read them is recorded again.
"""

# B rows, N pages of a row at most, G key/value heads, D head dim, C channels of a code
from __future__ import annotations

import weakref
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from ..ops.codes import Centre, code_channels
from ..ops.host import send
from ..ops.pages import ALIGNED, NEVER, Pages
from ..ops.sealed import is_sealed

if TYPE_CHECKING:
    from .store_row import StoreRow

NAMES = ("k", "v", "words", "size", "pos", "column")
DEVICES = ("cuda",)  # whose kernels find pages by address
SPARE = 4  # pages that there are entries for beyond those in use, at least


def can_stand(row: StoreRow) -> bool:
    """Do all of a row's tokens lie in whole pages that the device can reach, without gradients?"""
    held = [getattr(row, name) for name in NAMES]
    if len({piece.dtype for piece in (*row.k.pieces, *row.v.pieces)}) > 1:
        return False
    return all(
        growing.paged
        and piece.shape[1] == growing.size
        and not piece.requires_grad
        and piece.data_ptr() % ALIGNED == 0
        and (piece.device == growing.device or piece.is_pinned())
        for growing in held
        for piece in growing.pieces
    )


def places(rows: Sequence[StoreRow]) -> list[Any]:
    """What is equal as long as nothing of these rows has come to lie elsewhere; it keeps no memory alive."""
    held = (getattr(row, name) for row in rows for name in NAMES)
    return [(weakref.ref(growing), growing.made) for growing in held]


class Addresses:
    """Those of the rows of a store, how many slots of each are filled, and what their codes are centred by.

    Args:
        rows: Of the store; one of them has read something.
        pages: Entries of a row, the N of `Pages`.
    """

    def __init__(self, rows: Sequence[StoreRow], pages: int) -> None:
        some = next(row for row in rows if row.k.pieces)
        k, device = some.k.pieces[0], some.k.device
        B, (G, _, D) = len(rows), k.shape
        self.table = torch.zeros(len(NAMES), B, pages, dtype=torch.long, device=device)
        self.column = self.table[NAMES.index("column")]
        self.counted = 0  # tokens that steps have kept, of which the host does not know which rows have them
        self.recorded = False  # does a CUDA graph go by these?
        self.moved_B: Tensor | None = None  # how far the last step has moved every row
        self.arrived_B = torch.zeros(B, dtype=torch.int32, device=device)  # see `triton_pages.keep`
        self.places: list[Any] = []  # that the table tells
        self._centres: list[Centre | None] = [None] * B
        k_at, v_at, words_at, size_at, pos_at = self.table[:5]
        codes = code_channels(D) if some.centred_by else 0
        self.pages = Pages(
            k=k_at,
            v=v_at,
            words=words_at,
            size=size_at,
            pos=pos_at,
            filled_B=torch.zeros(B, dtype=torch.long, device=device),
            mean_BGD=torch.zeros(B, G, D, device=device),
            width_BGC=torch.ones(B, G, codes, device=device),
            ready_B=torch.full((B,), NEVER, dtype=torch.long, device=device),
            dtype=k.dtype,
        )

    @classmethod
    def entries(cls, rows: Sequence[StoreRow]) -> int:
        """How many a row needs now."""
        return max(len(row.k.pieces) for row in rows)

    @classmethod
    def of(cls, rows: Sequence[StoreRow]) -> Addresses:
        """With room to grow by a quarter."""
        used = cls.entries(rows)
        made = cls(rows, used + max(SPARE, used // 4))
        made.update(rows, places(rows))
        return made

    def fits(self, rows: Sequence[StoreRow]) -> bool:
        """Are there entries enough, that can be written to?"""
        return not self.sealed and len(rows) == self.table.shape[1] and self.entries(rows) <= self.table.shape[2]

    @property
    def sealed(self) -> bool:
        """Were they made in inference mode, and can they not be written to outside?"""
        return is_sealed(self.table)

    def update(self, rows: Sequence[StoreRow], now: list[Any]) -> None:
        """Write what has changed in place: where everything lies, how much is filled, what codes are centred by.

        `now` are the `places` of these rows. The host waits for nothing: a forward that looks tokens up does this in
        every layer.
        """
        if now != self.places:
            entries = self.table.shape[2]
            each = ([piece.data_ptr() for piece in getattr(row, name).pieces] for name in NAMES for row in rows)
            send([at + [0] * (entries - len(at)) for at in each], self.table)
            self.places = now
        if not self.counted:
            send([row.filled for row in rows], self.pages.filled_B)
        for b, row in enumerate(rows):
            if row.centre is self._centres[b]:
                continue
            if row.centre is None or row.ready is None:
                self.pages.ready_B[b] = NEVER
            else:
                self.pages.mean_BGD[b], self.pages.width_BGC[b] = row.centre
                self.pages.ready_B[b] = row.ready
            self._centres[b] = row.centre

    def step(
        self,
        k_BG1D: Tensor,
        v_BG1D: Tensor,
        pos_B1: Tensor,
        column_B1: Tensor,
        moved_B1: Tensor,
        window: tuple[Tensor, Tensor, Tensor] | None = None,
    ) -> None:
        """Keep one token of every row that has one, by counters on the device. There must be room for it.

        `window` is where it is put besides, see `triton_pages.keep`.
        """
        from ..ops.kernels.triton_pages import keep

        keep(self.pages, self.column, k_BG1D, v_BG1D, pos_B1, column_B1, self.arrived_B, window)
        self.moved_B = moved_B1[:, 0]
        self.count()

    def count(self) -> None:
        """Note on the host that a token was kept."""
        self.counted += 1

    def take_back(self) -> None:
        """Let the last token come again. The host has not counted it."""
        assert self.moved_B is not None
        self.pages.filled_B.sub_(self.moved_B)

    def settle(self, rows: Sequence[StoreRow]) -> None:
        """Tell the rows how far they have come."""
        if self.counted:
            for row, filled in zip(rows, self.pages.filled_B.tolist(), strict=True):
                row.filled = filled
                row.coded = filled if row.centred_by else 0
            self.counted = 0
