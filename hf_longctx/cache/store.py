"""`Store`: every token of a text by rank, to look tokens up in: keys, values, positions and binary codes."""

# B batch, G key/value heads, L new tokens or queries, D head dim, T tables: one for each of the G heads, or for each
# query head, K slots of a table
from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor

from ..ops.available import TRITON
from ..ops.kernels import ring as kernels
from ..ops.pages import Pages
from . import addresses, to_host
from .addresses import Addresses, can_stand, places
from .growing import Growing, reserve
from .once import Apply, each
from .ring import Ring
from .slots import KeyValues
from .store_row import StoreRow


class Store:
    """Every real token that each row of a batch has read, in memory that rows share where they hold the same.

    Rows are independent: each has as many slots as it has read tokens, so a padded row holds what it holds alone.

    Args:
        rows: The rows of the batch.
    """

    def __init__(self, rows: Sequence[StoreRow]) -> None:
        self._rows = list(rows)
        self.addresses: Addresses | None = None  # see `pages`
        self._moved = True  # have rows, or where they lie, changed since?
        self._spare = 0  # tokens of every row that there is room for, those that `addresses` have counted included

    @classmethod
    def of(cls, keys: KeyValues, centred_by: int = 0) -> Store:
        """That of keys and values as they are, slot by slot."""
        return cls([StoreRow.of(keys, row, centred_by) for row in range(len(keys.pos))])

    @property
    def rows(self) -> list[StoreRow]:
        """The rows, which know how far they have come."""
        self._settle()
        return self._rows

    def _settle(self) -> None:
        """Tell the rows what addresses have counted."""
        if self.addresses is not None and self.addresses.counted:
            self.addresses.settle(self._rows)
            self._spare = 0

    def on_host(self) -> list[tuple[Growing, int]]:
        """What is in host memory, and how many slots of it are filled at most."""
        ahead, rows = self._counted, [row for row in self._rows if row.on_host and row.k.pieces]
        return [(growing, row.filled + ahead) for row in rows for growing in (row.k, row.v)]

    @property
    def _counted(self) -> int:
        return 0 if self.addresses is None else self.addresses.counted

    @property
    def heads(self) -> int:
        """That share keys: G."""
        return len(next(row for row in self._rows if row.k.pieces).k.pieces[0])

    def append(self, new: KeyValues, padded: bool) -> None:
        """Keep new tokens, without padding. `new.column` says where in the text they were read."""
        self.write(new, padded)()

    def write(self, new: KeyValues, padded: bool, once: Apply = each) -> Callable[[], None]:
        """Write new tokens, which count once the function that is returned is called."""
        assert new.column is not None
        self._moved, self._spare = True, 0
        written = [
            row.write(new, b, once(_real, new.pos, b) if padded else None, once) for b, row in enumerate(self.rows)
        ]

        def count() -> None:
            for row in written:
                row()

        return count

    @property
    def steps(self) -> bool:
        """Can a token be kept by counters on the device, for which there must be room (`begin_steps`)?"""
        return self.addresses is not None and (self.coded or not any(row.centred_by for row in self._rows))

    @property
    def coded(self) -> bool:
        """Have all rows codes?"""
        return all(row.centre is not None for row in self._rows)

    def begin_steps(self) -> None:
        """Find room for a token and where all lies, if kernels can go by that."""
        row = self._rows[0]
        if TRITON and row.k.device is not None and row.k.device.type in addresses.DEVICES:
            self.reserve(1)
            self.pages()

    def step(self, new: KeyValues, ring: Ring, slots: KeyValues) -> None:
        """Keep one token of every row that `ring` moves, and put it into the ring's columns of `slots`."""
        assert self.addresses is not None
        assert not self._moved
        ring.written = True
        held, dtype = (new.k, new.v, slots.k, slots.v), self.addresses.pages.dtype
        window = None
        if all(x.dtype == dtype for x in held) and kernels.writes(*held):  # in the launch that keeps it
            window = slots.k, slots.v, ring.at_B1
        else:
            ring.write(slots.k, slots.v, new.k, new.v)
        self.addresses.step(new.k, new.v, new.pos, ring.last_B1, ring.moved_B1, window)

    def reserve(self, more: int) -> None:
        """Make room for `more` tokens of every row, so that keeping them allocates nothing."""
        self.reserve_all([self], more)

    @staticmethod
    def reserve_all(stores: Sequence[Store], more: int) -> None:
        """The same in several stores, whose memory is made together: that of one row of all, as rows may be dropped."""
        stores = [store for store in stores if not store.has_room(more)]
        before = [store._made for store in stores]
        for b in range(max((len(store._rows) for store in stores), default=0)):
            reserve(x for store in stores for row in store._rows[b : b + 1] for x in row.room(store._counted + more))
        for store, made in zip(stores, before, strict=True):
            store._moved = store._moved or store._made > made
            store._spare = min(len(row.k.pieces) * row.k.size - row.filled for row in store._rows)

    @property
    def _made(self) -> int:
        return sum(row.made for row in self._rows)

    def has_room(self, more: int) -> bool:
        """Is there room for `more` tokens of every row, as far as is known without a look at the rows?"""
        return self._counted + more <= self._spare

    def pages(self) -> Pages | None:
        """Where the tokens lie, for kernels; None where they do not lie in whole pages that the device can reach.

        The tensors stay the same ones, until `addresses` is another object. A compiler, which cannot follow, gets None.
        """
        if torch.compiler.is_compiling():
            return None
        if self._moved or (self.addresses is not None and self.addresses.sealed):
            now = places(self._rows)
            if not self._stands(now):
                self._settle()
                self.addresses = None
                return None
            if self.addresses is None or not self.addresses.fits(self._rows):
                self.addresses = Addresses.of(self.rows)
            else:
                self.addresses.update(self._rows, now)
            self._moved = False
        if self.addresses is not None and to_host.begun():
            for growing, _ in self.on_host()[:1]:
                growing.join()  # kernels read them by address
        return None if self.addresses is None else self.addresses.pages

    def _stands(self, now: list[Any]) -> bool:
        """Do all tokens lie where kernels find them? A look at each page takes the host long, so one is enough."""
        if self.addresses is not None and self.addresses.places == now:
            return True
        return any(row.k.pieces for row in self._rows) and all(map(can_stand, self._rows)) and self._can_page()

    def _can_page(self) -> bool:
        """Do the kernels that keep and gather tokens work here?"""
        if not TRITON:
            return False
        from ..ops.kernels.pages import unsupported_reason

        row = next(row for row in self._rows if row.k.pieces)
        assert row.k.device is not None
        return unsupported_reason(row.k.device, row.k.pieces[0], row.v.pieces[0]) is None

    def select(self, rows: Sequence[int]) -> None:
        """Choose rows again, some perhaps several times."""
        used: set[int] = set()
        chosen, held = [], self.rows
        for row in rows:
            chosen.append(held[row].twin() if row in used else held[row])
            used.add(row)
        self._rows, self._moved, self._spare = chosen, True, 0

    def show(self, mask_BT: Tensor) -> None:
        """Hide and show tokens as an attention mask over everything read so far says."""
        for row, mask_T in zip(self.rows, mask_BT.expand(len(self._rows), -1), strict=True):
            row.show(mask_T)
        self._moved, self._spare = True, 0

    def shows(self, mask_BT: Tensor) -> bool:
        """Whether a mask shows exactly the tokens that are shown now."""
        mask_BT = mask_BT.expand(len(self._rows), -1)
        return all(row.shows(mask_T) for row, mask_T in zip(self.rows, mask_BT, strict=True))

    def take_keys(self, table_BTLK: Tensor, first: int = 0) -> Tensor:
        """The keys of a table's slots, (B, T, L, K, D), of B rows from `first` on; any finite ones below 0."""
        return self._take("k", table_BTLK, first)

    def take(self, table_BTLK: Tensor) -> tuple[Tensor, Tensor]:
        """The keys of a table's slots, and the values."""
        return self._take("k", table_BTLK), self._take("v", table_BTLK)

    def _take(self, which: str, table_BTLK: Tensor, first: int = 0) -> Tensor:
        chosen = slice(first, first + len(table_BTLK))
        pages = self.pages() if TRITON and table_BTLK.device.type in addresses.DEVICES else None
        if pages is not None:
            from ..ops.kernels.triton_pages import gather

            like = next(getattr(row, which).pieces[0] for row in self._rows if row.k.pieces)
            at_BN = getattr(pages, which)[chosen]
            return gather(at_BN, table_BTLK, self.heads, like.shape[-1], pages.dtype)
        held = (getattr(row, which) for row in self.rows[chosen])
        return torch.stack([x.take(table_BTLK[b].clamp(min=0)) for b, x in enumerate(held)])

    def nbytes(self) -> int:
        """Bytes held, those that rows share counted once."""
        return sum({id(piece): piece.nbytes for row in self._rows for piece in row.pieces()}.values())

    def __getstate__(self) -> dict[str, Any]:
        """Without addresses, which are those of this process and of these tensors."""
        self._settle()
        return {**vars(self), "addresses": None, "_moved": True, "_spare": 0}


def _real(pos_BL: Tensor, row: int) -> Tensor:
    """The numbers of a row's tokens that are no padding."""
    return (pos_BL[row] >= 0).nonzero()[:, 0]
