"""Cache layers that hold keys un-rotated, with the position of every slot.

They stand in for transformers' `DynamicLayer` in a `DynamicCache`. What is stored has no position baked in: a method
decides where each key is read. Positions are per row and slot, negative where nothing is seen (see `KeyValues`).
"""

# B batch, G key/value heads, S stored slots, L new tokens, D head dim
from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor
from transformers.cache_utils import CacheLayerMixin

from .slots import KeyValues, Rows

if TYPE_CHECKING:
    from ..method import LongContextMethod
    from .ring import Ring


class UnrotatedLayer(Rows, CacheLayerMixin):
    """Base: what every un-rotated layer shares. Subclasses say what is kept in `_keep`.

    Args:
        owner: the method that writes this layer; a cache is only good for the method that wrote it.
    """

    is_sliding = False
    is_croppable = False
    bounded = False  # does what is kept stay the same size however much is read?

    def __init__(self, owner: LongContextMethod) -> None:
        super().__init__()
        self.owner = owner
        self.reset()

    def reset(self) -> None:
        self.keys: Tensor | None = None
        self.values: Tensor | None = None
        self.pos: Tensor | None = None
        self.column: Tensor | None = None  # of the text, for each slot; None: slot i is column i
        self.seen = 0  # tokens read, padding included: what transformers calls the sequence length
        self.padded = False
        self.masked = False  # may some of the tokens kept be hidden, which a later mask, or none, shows again?
        self.is_initialized = False
        self._new_pos: Tensor | None = None
        self.readable_pos: Tensor | None = None  # (B, S): of everything that the current forward may see
        self.head: KeyValues | None = None  # the first tokens, where a subclass keeps them apart
        self.evicted_B: Tensor | None = None  # the highest position that was dropped; None: nothing was

    def open(self) -> None:
        """Called by our attention before a forward; a stock model does not, and is stopped by `_check_open`."""
        self._open = True

    def close(self) -> None:
        """Called after a forward, also one that failed."""
        self._open, self._new_pos, self.readable_pos = False, None, None

    _open = False
    joined = False  # does `update` return the head too, before all else? For attention that changes what it gets

    def push(self, pos_BL: Tensor, padded: bool) -> None:
        """The positions of the tokens that the next `update` brings, -1 for padding."""
        self._new_pos = pos_BL
        self.padded = self.padded or padded

    def show(self, mask_BT: Tensor) -> None:
        """Hide and show stored tokens as an attention mask over everything read so far says."""
        if self.is_initialized:
            self._store(self.slots.shown(mask_BT))
            self.padded = self.masked = True

    def show_all(self) -> None:
        """Show what masks have hidden: without one, or with ones alone, all that was read is seen."""
        if self.masked:
            assert self.pos is not None
            self.show(torch.ones(len(self.pos), max(self.seen, 1), dtype=torch.bool, device=self.pos.device))
            self.masked = False

    def shows(self, mask_BT: Tensor) -> Tensor:
        """Is a mask what is shown already? A tensor, so that who asks chooses when to wait for it."""
        each = [(slots.shown(mask_BT).pos == slots.pos).all() for slots in self._all()]
        return torch.stack(each).all()

    def misses(self, first_B: Tensor) -> Tensor:
        """(B,): have rows that go on at these positions lost tokens that they would see?"""
        return torch.zeros_like(first_B, dtype=torch.bool)

    def lazy_initialization(self, key_states: Tensor, value_states: Tensor) -> None:
        self.dtype, self.device = key_states.dtype, key_states.device
        self.keys, self.values = key_states[:, :, :0], value_states[:, :, :0]
        self.pos = torch.empty(len(key_states), 0, dtype=torch.long, device=self.device)
        self.is_initialized = True

    def update(self, key_states: Tensor, value_states: Tensor, *args: Any, **kwargs: Any) -> tuple[Tensor, Tensor]:
        """Take L new un-rotated keys; return everything the new queries may see, kept and new, (B, G, S + L, D).

        A `joined` layer returns its first tokens too, before the others; `readable_pos` is without them.
        """
        self._check_open()
        assert self._new_pos is not None
        if not self.is_initialized:
            self.lazy_initialization(key_states, value_states)
        readable = self._keep(KeyValues(key_states, value_states, self._new_pos.to(key_states.device)))
        self.readable_pos = readable.pos
        self.seen += key_states.shape[2]
        self._new_pos, self._open = None, False
        if self.joined and self.head is not None and len(self.head):
            return torch.cat([self.head.k, readable.k], 2), torch.cat([self.head.v, readable.v], 2)
        return readable.k, readable.v

    def _keep(self, new: KeyValues) -> KeyValues:
        """Store what later tokens need of `new` and return what the new tokens may see."""
        raise NotImplementedError

    @property
    def slots(self) -> KeyValues:
        assert self.keys is not None
        assert self.values is not None
        assert self.pos is not None
        return KeyValues(self.keys, self.values, self.pos, self.column)

    def in_order(self) -> KeyValues:
        """What is kept, oldest first."""
        return self.slots

    def _store(self, slots: KeyValues) -> None:
        self.keys, self.values, self.pos, self.column = slots.k, slots.v, slots.pos, slots.column

    def _check_open(self) -> None:
        if not self._open:
            raise RuntimeError(
                f"this cache holds un-rotated keys written under {self.owner!r}, and a model without that method "
                f"cannot read it. Apply the method again, or start with a new cache."
            )

    # -- what transformers asks a layer ------------------------------------------------------------------------------
    def get_seq_length(self) -> int:
        return self.seen

    def get_mask_sizes(self, query_length: int) -> tuple[int, int]:
        self._check_open()
        return self.seen + query_length, 0

    def get_max_length(self) -> int:
        return -1

    def nbytes(self) -> int:
        """Bytes of keys, values, positions and columns stored."""
        tensors = [t for slots in self._all() for t in (slots.k, slots.v, slots.pos, slots.column)]
        return sum(t.numel() * t.element_size() for t in tensors if t is not None)

    def crop(self, tokens_to_remove: int) -> None:
        if tokens_to_remove:
            raise RuntimeError(f"{self.owner!r}: its cache cannot be cropped; assisted decoding needs that.")

    def _all(self) -> list[KeyValues]:
        return [s for s in (self.slots if self.is_initialized else None, self.head) if s is not None]

    def _map(self, f: Any) -> None:
        if self.is_initialized:
            self._store(self.slots.map(f))
            self.head = None if self.head is None else self.head.map(f)
            self.evicted_B = None if self.evicted_B is None else f(self.evicted_B)


class SinkWindowLayer(UnrotatedLayer):
    """Keeps the first `n_first` real tokens and the last `n_last`: constant memory however much is read.

    `head` holds the first tokens (whether or not they are still among the last). What is kept stands in order while
    whole chunks are read, and in a `Ring` while single tokens are.
    """

    bounded = True

    def __init__(self, owner: LongContextMethod, n_first: int, n_last: int) -> None:
        self.n_first, self.n_last = n_first, n_last
        super().__init__(owner)

    def reset(self) -> None:
        super().reset()
        self.ring: Ring | None = None
        self.skipped_BN: Tensor | None = (
            None  # columns of hidden tokens before the first ones that were dropped; -1: none
        )

    def lazy_initialization(self, key_states: Tensor, value_states: Tensor) -> None:
        super().lazy_initialization(key_states, value_states)
        self.column = self.pos

    def _keep(self, new: KeyValues) -> KeyValues:
        if self.ring is not None and len(new) == 1:
            return self._turn(self.ring, new)
        self.to_order()
        columns = torch.arange(self.seen, self.seen + len(new), device=new.pos.device)
        new = replace(new, column=columns.expand_as(new.pos))
        readable = self.slots.then(new)
        if self.head is None or self.padded or len(self.head) < self.n_first:
            candidates = new if self.head is None else self.head.then(new)
            self.head = candidates.first(self.n_first, self.padded).own()
        self.keep_last(readable)
        return readable

    def keep_last(self, slots: KeyValues) -> None:
        """Keep the last `n_last` of `slots`, in order, and remember how far what is dropped reached."""
        kept = slots.last(self.n_last, self.padded)
        if len(kept) < len(slots):
            far = torch.iinfo(torch.long).max
            first_kept = torch.where(kept.pos < 0, far, kept.pos).amin(1, keepdim=True) if len(kept) else far
            dropped_B = torch.where(slots.pos < first_kept, slots.pos, -1).amax(1)
            self.evicted_B = dropped_B if self.evicted_B is None else torch.maximum(self.evicted_B, dropped_B)
            if self.masked and self.head is not None and len(self.head):
                self._skip(slots, kept, self.head)
        self._store(kept.own())

    def _skip(self, slots: KeyValues, kept: KeyValues, head: KeyValues) -> None:
        """Remember the hidden tokens among what is dropped that would be first ones if a mask showed them again."""
        assert slots.column is not None
        far = torch.iinfo(torch.long).max
        first: Any = far
        if len(kept):
            assert kept.column is not None
            first = torch.where(kept.pos == -1, far, kept.column).amin(1, keepdim=True)
        before = (slots.pos < -1) & (-2 - slots.pos < head.pos.amax(1, keepdim=True)) & (slots.column < first)
        count = int(before.sum(1).max())
        if count:
            new = torch.where(before, slots.column, -1).topk(min(count, len(slots)), dim=1).values
            self.skipped_BN = new if self.skipped_BN is None else torch.cat([self.skipped_BN, new], 1)

    def _turn(self, ring: Ring, new: KeyValues) -> KeyValues:
        k, v, n = self.slots.k, self.slots.v, ring.readable
        ring.write(k, new.k)
        ring.write(v, new.v)
        return KeyValues(k[:, :, :n], v[:, :, :n], ring.pos_BN[:, :n])

    def push(self, pos_BL: Tensor, padded: bool) -> None:
        super().push(pos_BL, padded)
        if self.ring is not None and pos_BL.shape[1] == 1:
            self.ring.begin(pos_BL.to(self.ring.pos_BN.device))

    def close(self) -> None:
        super().close()
        if self.ring is not None:
            self.ring.end()

    def to_ring(self, ring: Ring) -> None:
        """Go on in the columns of `ring`, whose positions are those of what is kept (see `ring.roll`)."""
        kept = self.slots
        B, G, n, D = kept.k.shape
        k, v = kept.k.new_zeros(B, G, ring.size, D), kept.v.new_zeros(B, G, ring.size, kept.v.shape[-1])
        k[:, :, :n], v[:, :, :n] = kept.k, kept.v
        self._store(KeyValues(k, v, ring.pos_BN, ring.column_BN))
        self.ring = ring

    def in_order(self) -> KeyValues:
        kept = self.slots
        return kept if self.ring is None else kept.gather(self.ring.in_order())

    def to_order(self) -> None:
        """Back from a ring to what is kept, in order."""
        if self.ring is None:
            return
        ordered, self.evicted_B = self.in_order(), self.ring.evicted_B.clone()
        self.ring = None
        self.keep_last(ordered)

    def reorder_cache(self, beam_idx: Tensor) -> None:
        if self.ring is None:
            super().reorder_cache(beam_idx)
            return
        for slots in self._all():
            for tensor in (slots.k, slots.v, *(() if slots.pos is self.ring.pos_BN else (slots.pos, slots.column))):
                tensor.copy_(tensor.index_select(0, beam_idx.to(tensor.device)))
        if self.skipped_BN is not None:
            self.skipped_BN = self.skipped_BN.index_select(0, beam_idx.to(self.skipped_BN.device))
        self.ring.reorder(self, beam_idx)

    def _map(self, f: Any) -> None:
        self.to_order()
        super()._map(f)
        self.skipped_BN = None if self.skipped_BN is None else f(self.skipped_BN)

    @property
    def full(self) -> bool:
        """Are all the first tokens there?"""
        return self.head is not None and len(self.head) >= self.n_first

    def far(self) -> int:
        """A position from which on the first tokens are out of the window, and twice as far as it is wide."""
        first = int(self.head.pos.max()) + 1 if self.head is not None and len(self.head) else self.n_first
        return first + 2 * (self.n_last + 1)

    def move_back(self, delta: int) -> None:
        """Move the last tokens to lower positions, down to `far()` at the least. The first ones stay where they are."""
        if self.is_initialized:
            self.to_order()
            slots = self.slots
            pos = torch.where(slots.pos < 0, slots.pos, slots.pos - delta)
            self._store(replace(slots, pos=torch.where(pos < -1, pos + delta, pos)))
            if self.evicted_B is not None:
                self.evicted_B = (self.evicted_B - delta).clamp(min=-1)

    def show(self, mask_BT: Tensor) -> None:
        if self._shows_skipped(mask_BT):
            raise ValueError(
                f"attention_mask shows tokens again that it had hidden: {self.owner.name} has dropped them meanwhile, "
                f"and they would be first tokens. Read the text again with a new cache."
            )
        self.to_order()
        super().show(mask_BT)
        if self.head is None:
            return
        # where nothing was dropped, all that was read is there to choose from
        fresh = self.slots.first(self.n_first, True).own()
        if self.evicted_B is None or len(fresh) != len(self.head):
            self.head = fresh if self.evicted_B is None else self.head.shown(mask_BT)
            return
        held, whole_B = self.head.shown(mask_BT), self.evicted_B < 0
        wide = whole_B[:, None, None, None]
        assert fresh.column is not None
        assert held.column is not None
        column = torch.where(whole_B[:, None], fresh.column, held.column)
        pos = torch.where(whole_B[:, None], fresh.pos, held.pos)
        self.head = KeyValues(torch.where(wide, fresh.k, held.k), torch.where(wide, fresh.v, held.v), pos, column)

    def show_all(self) -> None:
        if self.ring is None or not self.ring.whole:  # a recorded step is given no mask, and sees what was seen before
            super().show_all()

    def shows(self, mask_BT: Tensor) -> Tensor:
        skipped = self._shows_skipped(mask_BT)
        return super().shows(mask_BT) if skipped is False else super().shows(mask_BT) & ~skipped

    def _shows_skipped(self, mask_BT: Tensor) -> Any:
        if self.skipped_BN is None:
            return False
        mask = mask_BT.to(self.skipped_BN.device)
        return (mask.gather(1, self.skipped_BN.clamp(min=0)) & (self.skipped_BN >= 0)).any()

    def misses(self, first_B: Tensor) -> Tensor:
        evicted = self.evicted_B if self.ring is None else self.ring.evicted_B
        if evicted is None:
            return super().misses(first_B)
        evicted = evicted.to(first_B.device)
        missing = evicted > first_B - (self.n_last + 1)
        missing &= (first_B > 0) & (self.n_last > 0)  # else a token sees none before its own in the window
        if self.head is not None:  # the tokens that come after a first one that is hidden are gone
            missing |= (self.head.pos < -1).any(1).to(first_B.device)
        return missing & (evicted >= 0)


class FullLayer(UnrotatedLayer):
    """Keeps every key. With `on_host` they live in host memory and visit the device one layer at a time."""

    def __init__(self, owner: LongContextMethod, on_host: bool = False) -> None:
        self.on_host = on_host
        super().__init__(owner)

    def _keep(self, new: KeyValues) -> KeyValues:
        if not self.on_host:
            readable = self.slots.then(new)
            self._store(readable)
            return readable
        readable = self.slots.map(lambda t: t.to(new.k.device, non_blocking=True)).then(new)
        self._store(self.slots.map(lambda t: t.cpu()).then(new.map(lambda t: t.cpu())))
        return readable
