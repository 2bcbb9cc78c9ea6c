"""Cache layers that hold keys un-rotated, with the position of every slot.

They stand in for transformers' `DynamicLayer` in a `DynamicCache`. What is stored has no position baked in: a method
decides where each key is read. Positions are per row and slot, -1 where a slot is padding.
"""

# B batch, G key/value heads, S stored slots, L new tokens, D head dim
from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor
from transformers.cache_utils import CacheLayerMixin

if TYPE_CHECKING:
    from ..method import LongContextMethod
    from .ring import Ring


@dataclass(frozen=True)
class Slots:
    """Some keys and values (B, G, S, D) and their positions (B, S); -1 is an empty slot."""

    k: Tensor
    v: Tensor
    pos: Tensor

    def __len__(self) -> int:
        return self.pos.shape[1]

    def then(self, newer: Slots) -> Slots:
        return Slots(
            torch.cat([self.k, newer.k], 2), torch.cat([self.v, newer.v], 2), torch.cat([self.pos, newer.pos], 1)
        )

    def first(self, n: int, padded: bool) -> Slots:
        """The first n real slots of every row (fewer if there are fewer, then with empty slots behind)."""
        if not padded:
            return self._columns(slice(0, n))
        return self._gather(torch.argsort((self.pos < 0).byte(), dim=1, stable=True)[:, :n])

    def last(self, n: int, padded: bool) -> Slots:
        """The last n real slots of every row (fewer if there are fewer, then with empty slots before)."""
        if not padded:
            return self._columns(slice(max(len(self) - n, 0), len(self)))
        return self._gather(torch.argsort((self.pos >= 0).byte(), dim=1, stable=True)[:, max(len(self) - n, 0) :])

    def _columns(self, columns: slice) -> Slots:
        return Slots(self.k[:, :, columns], self.v[:, :, columns], self.pos[:, columns])

    def _gather(self, index_BN: Tensor) -> Slots:
        wide = index_BN[:, None, :, None]
        k = self.k.gather(2, wide.expand(-1, self.k.shape[1], -1, self.k.shape[3]))
        v = self.v.gather(2, wide.expand(-1, self.v.shape[1], -1, self.v.shape[3]))
        return Slots(k, v, self.pos.gather(1, index_BN))

    def map(self, f: Any) -> Slots:
        return Slots(f(self.k), f(self.v), f(self.pos))

    def own(self) -> Slots:
        """Copies, so that a slice does not keep the tensor alive that it was cut from."""
        return self.map(lambda t: t.clone(memory_format=torch.contiguous_format))


class Rows:
    """What transformers does to the batch dimension of a layer, through its `_map`."""

    def _map(self, f: Callable[[Tensor], Tensor]) -> None:
        """Replace every tensor that has a row for each of the batch by `f` of it."""
        raise NotImplementedError

    def reorder_cache(self, beam_idx: Tensor) -> None:
        self._map(lambda t: t.index_select(0, beam_idx.to(t.device)))

    def batch_repeat_interleave(self, repeats: int) -> None:
        self._map(lambda t: t.repeat_interleave(repeats, dim=0))

    def batch_select_indices(self, indices: Tensor) -> None:
        self._map(lambda t: t[indices.to(t.device)])


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
        self.seen = 0  # tokens read, padding included: what transformers calls the sequence length
        self.padded = False
        self.is_initialized = False
        self._new_pos: Tensor | None = None
        self.readable: Slots | None = None  # everything the current forward may see
        self.head: Slots | None = None  # the first tokens, where a subclass keeps them apart

    def open(self) -> None:
        """Called by our attention before a forward; a stock model does not, and is stopped by `_check_open`."""
        self._open = True

    def close(self) -> None:
        """Called after a forward, also one that failed."""
        self._open, self._new_pos, self.readable = False, None, None

    _open = False

    def push(self, pos_BL: Tensor, padded: bool) -> None:
        """The positions of the tokens that the next `update` brings, -1 for padding."""
        self._new_pos = pos_BL
        self.padded = self.padded or padded

    def lazy_initialization(self, key_states: Tensor, value_states: Tensor) -> None:
        self.dtype, self.device = key_states.dtype, key_states.device
        self.keys, self.values = key_states[:, :, :0], value_states[:, :, :0]
        self.pos = torch.empty(len(key_states), 0, dtype=torch.long, device=self.device)
        self.is_initialized = True

    def update(self, key_states: Tensor, value_states: Tensor, *args: Any, **kwargs: Any) -> tuple[Tensor, Tensor]:
        """Take L new un-rotated keys; return everything the new queries may see, kept and new, (B, G, S + L, D)."""
        self._check_open()
        assert self._new_pos is not None
        if not self.is_initialized:
            self.lazy_initialization(key_states, value_states)
        self.readable = self._keep(Slots(key_states, value_states, self._new_pos.to(key_states.device)))
        self.seen += key_states.shape[2]
        self._new_pos, self._open = None, False
        return self.readable.k, self.readable.v

    def _keep(self, new: Slots) -> Slots:
        """Store what later tokens need of `new` and return what the new tokens may see."""
        raise NotImplementedError

    @property
    def slots(self) -> Slots:
        assert self.keys is not None
        assert self.values is not None
        assert self.pos is not None
        return Slots(self.keys, self.values, self.pos)

    def in_order(self) -> Slots:
        """What is kept, oldest first."""
        return self.slots

    def _store(self, slots: Slots) -> None:
        self.keys, self.values, self.pos = slots.k, slots.v, slots.pos

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
        """Bytes of keys, values and positions stored."""
        tensors = [t for slots in self._all() for t in (slots.k, slots.v, slots.pos)]
        return sum(t.numel() * t.element_size() for t in tensors)

    def crop(self, tokens_to_remove: int) -> None:
        if tokens_to_remove:
            raise RuntimeError(f"{self.owner!r}: its cache cannot be cropped; assisted decoding needs that.")

    def _all(self) -> list[Slots]:
        return [s for s in (self.slots if self.is_initialized else None, self.head) if s is not None]

    def _map(self, f: Any) -> None:
        if self.is_initialized:
            self._store(self.slots.map(f))
            self.head = None if self.head is None else self.head.map(f)


class BoundedLayer(UnrotatedLayer):
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

    def _keep(self, new: Slots) -> Slots:
        if self.ring is not None and len(new) == 1:
            return self._turn(self.ring, new)
        self.to_order()
        readable = self.slots.then(new)
        if self.head is None or self.padded or len(self.head) < self.n_first:
            candidates = new if self.head is None else self.head.then(new)
            self.head = candidates.first(self.n_first, self.padded).own()
        self._store(readable.last(self.n_last, self.padded).own())
        return readable

    def _turn(self, ring: Ring, new: Slots) -> Slots:
        k, v, pos = self.slots.k, self.slots.v, self.slots.pos
        k.index_copy_(2, ring.column, new.k.to(k.dtype))
        v.index_copy_(2, ring.column, new.v.to(v.dtype))
        n = ring.readable
        return Slots(k[:, :, :n], v[:, :, :n], pos[:, :n])

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
        self._store(Slots(k, v, ring.pos_BN))
        self.ring = ring

    def in_order(self) -> Slots:
        kept = self.slots
        if self.ring is None:
            return kept
        at = self.ring.in_order()
        return Slots(kept.k.index_select(2, at), kept.v.index_select(2, at), kept.pos.index_select(1, at))

    def to_order(self) -> None:
        """Back from a ring to what is kept, in order."""
        if self.ring is None:
            return
        ordered = self.in_order()
        self.ring = None
        self._store(ordered.last(self.n_last, self.padded).own())

    def reorder_cache(self, beam_idx: Tensor) -> None:
        if self.ring is None:
            super().reorder_cache(beam_idx)
            return
        for slots in self._all():
            for tensor in (slots.k, slots.v, *(() if slots.pos is self.ring.pos_BN else (slots.pos,))):
                tensor.copy_(tensor.index_select(0, beam_idx.to(tensor.device)))
        self.ring.reorder(self, beam_idx)

    def _map(self, f: Any) -> None:
        self.to_order()
        super()._map(f)

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
            self._store(Slots(slots.k, slots.v, torch.where(slots.pos < 0, slots.pos, slots.pos - delta)))


class GrowingLayer(UnrotatedLayer):
    """Keeps every key. With `on_host` they live in host memory and visit the device one layer at a time."""

    def __init__(self, owner: LongContextMethod, on_host: bool = False) -> None:
        self.on_host = on_host
        super().__init__(owner)

    def _keep(self, new: Slots) -> Slots:
        if not self.on_host:
            readable = self.slots.then(new)
            self._store(readable)
            return readable
        readable = self.slots.map(lambda t: t.to(new.k.device, non_blocking=True)).then(new)
        self._store(self.slots.map(lambda t: t.cpu()).then(new.map(lambda t: t.cpu())))
        return readable
