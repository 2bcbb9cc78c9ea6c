"""`Store`: every token of a text by rank, to look tokens up in: keys, values, positions and one-bit codes."""

# B batch, G key/value heads, L new tokens or queries, D head dim, T tables: one for each of the G heads, or for each
# query head, K slots of a table
from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from ..ops.codes import Centre, encode
from ..ops.pages import Pages
from .growing import Growing
from .slots import KeyValues, show

AT_ONCE = 8192  # keys that are coded at once


class StoreRow:
    """One row of a `Store`. Its slots are its real tokens in the order of their arrival, whatever padding came between.

    Args:
        centred_by: The row's first keys, of those shown, that its codes are centred by; before all of them are there,
            there are no codes. 0: there are none at all.
    """

    def __init__(self, centred_by: int) -> None:
        self.centred_by = centred_by
        self.filled = 0
        self.hides = False  # may some slots hold tokens that are not seen?
        self.k, self.v, self.pos, self.column = Growing(), Growing(), Growing(), Growing()
        self._forget_codes()

    def _forget_codes(self) -> None:
        self.words, self.size = Growing(), Growing()
        self.coded = 0
        self.centre: Centre | None = None
        self.ready: Tensor | None = None  # the position of the last key that codes are centred by

    @classmethod
    def of(cls, keys: KeyValues, row: int, centred_by: int) -> StoreRow:
        """One row of keys and values as they are, padding included, without a copy."""
        made = cls(centred_by)
        made.k, made.v, made.pos = (Growing(x) for x in (keys.k[row], keys.v[row], keys.pos[row][None]))
        made.hides = True
        made._encode(len(keys))
        made.filled = len(keys)
        return made

    def append(self, k_GLD: Tensor, v_GLD: Tensor, pos_L: Tensor, column_L: Tensor) -> None:
        """Keep L more tokens. They count once all is kept of them: what fails half-way is written over."""
        end = self.filled + len(pos_L)
        new = (self.k, k_GLD), (self.v, v_GLD), (self.pos, pos_L[None]), (self.column, column_L[None])
        for held, part in new:
            held.write(self.filled, part)
        self._encode(end)
        self.filled = end

    def _encode(self, end: int) -> None:
        """Code the keys before slot `end` that have no code yet."""
        if not self.centred_by or end < self.centred_by or end == self.coded:
            return
        with torch.no_grad():
            centre, ready = (self.centre, self.ready) if self.centre is not None else self._centred(end)
            if centre is None:
                return
            for start in range(self.coded, end, AT_ONCE):
                words, size = encode(self.k.cut(start, min(start + AT_ONCE, end)), centre)
                self.words.write(start, words)
                self.size.write(start, size)
        self.centre, self.ready, self.coded = centre, ready, end

    def _centred(self, end: int) -> tuple[Centre | None, Tensor | None]:
        """By the first keys that are shown, and the position of the last of them; None: there are too few."""
        pos_S = self.pos.cut(0, end)[0]
        first = (pos_S >= 0).nonzero()[:, 0] if self.hides else torch.arange(self.centred_by, device=pos_S.device)
        first = first[: self.centred_by]
        if len(first) < self.centred_by:
            return None, None
        heads = len(self.k.pieces[0])
        return Centre.of(self.k.take(first.expand(heads, -1))), pos_S[first[-1]]

    def show(self, mask_T: Tensor) -> None:
        """Hide and show tokens as an attention mask says. Codes are then centred as those of the row alone."""
        if not self.filled:
            return
        before, after = self._shown(mask_T)
        if torch.equal(before, after):
            return
        self.pos, self.hides = Growing(), True
        self.pos.write(0, after)
        self._forget_codes()
        self._encode(self.filled)

    def shows(self, mask_T: Tensor) -> bool:
        """Whether a mask shows exactly the tokens that are shown now."""
        return not self.filled or torch.equal(*self._shown(mask_T))

    def _shown(self, mask_T: Tensor) -> tuple[Tensor, Tensor]:
        """(1, S) each: the positions as they are, and as an attention mask has them."""
        before = self.pos.cut(0, self.filled)
        return before, show(before, self.column.cut(0, self.filled), mask_T[None].to(before.device))

    def twin(self) -> StoreRow:
        """A row of its own with the same tokens; the pieces that are complete are shared."""
        twin = StoreRow(self.centred_by)
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


class Store:
    """Every real token that each row of a batch has read, in memory that rows share where they hold the same.

    Rows are independent: each has as many slots as it has read tokens, so a padded row holds what it holds alone.

    Args:
        rows: The rows of the batch.
    """

    def __init__(self, rows: Sequence[StoreRow]) -> None:
        self.rows = list(rows)

    @classmethod
    def of(cls, keys: KeyValues, centred_by: int = 0) -> Store:
        """That of keys and values as they are, slot by slot."""
        return cls([StoreRow.of(keys, row, centred_by) for row in range(len(keys.pos))])

    def append(self, new: KeyValues, padded: bool) -> None:
        """Keep new tokens, without padding. `new.column` says where in the text they were read."""
        assert new.column is not None
        for b, row in enumerate(self.rows):
            k, v, pos, column = new.k[b], new.v[b], new.pos[b], new.column[b]
            if padded:
                real = pos >= 0
                k, v, pos, column = k[:, real], v[:, real], pos[real], column[real]
            row.append(k, v, pos, column)

    def select(self, rows: Sequence[int]) -> None:
        """Choose rows again, some perhaps several times."""
        used: set[int] = set()
        chosen = []
        for row in rows:
            chosen.append(self.rows[row].twin() if row in used else self.rows[row])
            used.add(row)
        self.rows = chosen

    def show(self, mask_BT: Tensor) -> None:
        """Hide and show tokens as an attention mask over everything read so far says."""
        for row, mask_T in zip(self.rows, mask_BT.expand(len(self.rows), -1), strict=True):
            row.show(mask_T)

    def shows(self, mask_BT: Tensor) -> bool:
        """Whether a mask shows exactly the tokens that are shown now."""
        mask_BT = mask_BT.expand(len(self.rows), -1)
        return all(row.shows(mask_T) for row, mask_T in zip(self.rows, mask_BT, strict=True))

    def take_keys(self, table_BTLK: Tensor) -> Tensor:
        """The keys of a table's slots, (B, T, L, K, D); any finite ones for those below 0."""
        return torch.stack([row.k.take(table_BTLK[b].clamp(min=0)) for b, row in enumerate(self.rows)])

    def take(self, table_BTLK: Tensor) -> tuple[Tensor, Tensor]:
        """The keys of a table's slots, and the values."""
        values = [row.v.take(table_BTLK[b].clamp(min=0)) for b, row in enumerate(self.rows)]
        return self.take_keys(table_BTLK), torch.stack(values)

    def pages(self) -> Pages | None:
        """Where the tokens lie, for kernels; None where they are not kept in pages."""
        return None

    def nbytes(self) -> int:
        """Bytes held, those that rows share counted once."""
        return sum({id(piece): piece.nbytes for row in self.rows for piece in row.pieces()}.values())
