"""Keys and values with the position of each, and changes of their batch dimension."""

# B batch, G key/value heads, S slots, D head dim
from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from .once import Apply, each


@dataclass(frozen=True)
class KeyValues:
    """Some keys and values (B, G, S, D) and their positions (B, S).

    Below 0 nothing is seen: -1 is an empty slot, or padding; -2 - p a token at position p that an attention mask hides
    (see `show`). `column` is where in the text each slot's token was read, padding counted, which is what the columns
    of an attention mask stand for; None: slot i is column i.
    """

    k: Tensor
    v: Tensor
    pos: Tensor
    column: Tensor | None = None

    def __len__(self) -> int:
        return self.pos.shape[1]

    def then(self, newer: KeyValues, once: Apply = each) -> KeyValues:
        """These slots, and then those of `newer`."""
        column = None
        if self.column is not None and newer.column is not None:
            column = _joined(self.column, newer.column, once)
        k, v = torch.cat([self.k, newer.k], 2), torch.cat([self.v, newer.v], 2)
        return KeyValues(k, v, _joined(self.pos, newer.pos, once), column)

    def first(self, n: int, padded: bool) -> KeyValues:
        """The first n real slots of every row (fewer if there are fewer, with empty slots after them)."""
        if not padded:
            return self._columns(slice(0, n))
        return self.gather(torch.argsort((self.pos < 0).byte(), dim=1, stable=True)[:, :n])

    def last(self, n: int, padded: bool, once: Apply = each) -> KeyValues:
        """The last n slots of every row whose tokens are seen, or may be seen again (if fewer, with others before).

        They are copies, so that a slice does not keep the tensor alive that it was cut from.
        """
        start = max(len(self) - n, 0)
        if padded:
            return self.gather(once(_alive_from, self.pos, start), once)
        k, v = (_copy(x[:, :, start:]) for x in (self.k, self.v))
        column = None if self.column is None else once(_copy_from, self.column, start)
        return KeyValues(k, v, once(_copy_from, self.pos, start), column)

    def latest(self) -> Tensor:
        """The greatest position of every row, (B,); below 0: it has none that is seen."""
        return self.pos.amax(1) if len(self) else self.pos.new_full((len(self.pos),), -1)

    def alive(self) -> Tensor:
        """(B, S): which tokens are seen, or may be once a mask shows them again. For slots in order.

        A hidden token whose position, or one before it, a row has read again since is not shown again.
        """
        return _alive(self.pos)

    def _columns(self, columns: slice) -> KeyValues:
        column = None if self.column is None else self.column[:, columns]
        return KeyValues(self.k[:, :, columns], self.v[:, :, columns], self.pos[:, columns], column)

    def gather(self, index_BN: Tensor, once: Apply = each) -> KeyValues:
        """The slots of these numbers, each row's own."""
        wide = index_BN[:, None, :, None]
        k = self.k.gather(2, wide.expand(-1, self.k.shape[1], -1, self.k.shape[3]))
        v = self.v.gather(2, wide.expand(-1, self.v.shape[1], -1, self.v.shape[3]))
        column = None if self.column is None else once(torch.gather, self.column, 1, index_BN)
        return KeyValues(k, v, once(torch.gather, self.pos, 1, index_BN), column)

    def map(self, f: Callable[[Tensor], Tensor]) -> KeyValues:
        """`f` of every tensor."""
        return KeyValues(f(self.k), f(self.v), f(self.pos), None if self.column is None else f(self.column))

    def shown(self, mask_BT: Tensor) -> KeyValues:
        """With tokens hidden and shown as an attention mask says (see `show`)."""
        return replace(self, pos=show(self.pos, self.column, mask_BT.to(self.pos.device)))

    def own(self) -> KeyValues:
        """Copies, so that a slice does not keep the tensor alive that it was cut from."""
        return self.map(_copy)


def _copy(x: Tensor) -> Tensor:
    return x.clone(memory_format=torch.contiguous_format)


def _copy_from(x_BS: Tensor, start: int) -> Tensor:
    return _copy(x_BS[:, start:])


def _joined(older_BS: Tensor, newer_BL: Tensor, once: Apply) -> Tensor:
    """Positions, or columns, and then newer ones."""
    # layers have an empty tensor each before their first tokens, and then the same ones
    joined: Tensor = once(_cat, older_BS, newer_BL) if older_BS.shape[1] else once(_copy, newer_BL)
    return joined


def _cat(older_BS: Tensor, newer_BL: Tensor) -> Tensor:
    return torch.cat([older_BS, newer_BL], 1)


def _alive(pos_BS: Tensor) -> Tensor:
    """See `KeyValues.alive`."""
    far = torch.iinfo(torch.long).max
    seen = torch.where(pos_BS < 0, far, pos_BS)
    lowest_after = seen.flip(1).cummin(1).values.flip(1) if pos_BS.shape[1] else seen
    return (pos_BS >= 0) | ((pos_BS < -1) & (lowest_after > -2 - pos_BS))


def _alive_from(pos_BS: Tensor, start: int) -> Tensor:
    """The slots from `start` on, once those that are alive come last, in order."""
    return torch.argsort(_alive(pos_BS).byte(), dim=1, stable=True)[:, start:]


def show(pos_BS: Tensor, column_BS: Tensor | None, mask_BT: Tensor) -> Tensor:
    """Positions (B, S) with tokens hidden and shown as an attention mask (B, T) of bool says.

    Padding that was never given a position stays what it is.
    """
    if column_BS is None:
        real = mask_BT[:, : pos_BS.shape[1]]
    else:
        real = mask_BT.gather(1, column_BS.clamp(min=0, max=mask_BT.shape[1] - 1))
    there = torch.where(pos_BS < -1, -2 - pos_BS, pos_BS)
    return torch.where(real | (there < 0), there, -2 - there)


class BatchRows:
    """The changes of a layer's batch dimension that transformers makes, by its `map_rows`."""

    def map_rows(self, f: Callable[[Tensor], Tensor]) -> None:
        """Replace every tensor that has a row for each of the batch by `f` of it."""
        raise NotImplementedError

    def reorder_cache(self, beam_idx: Tensor) -> None:
        """Choose the batch's rows again, for beam search."""
        self.map_rows(lambda t: t.index_select(0, beam_idx.to(t.device)))

    def batch_repeat_interleave(self, repeats: int) -> None:
        """Repeat every row."""
        self.map_rows(lambda t: t.repeat_interleave(repeats, dim=0))

    def batch_select_indices(self, indices: Tensor) -> None:
        """Keep these rows."""
        self.map_rows(lambda t: t[indices.to(t.device)])
