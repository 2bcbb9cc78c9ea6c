"""The base of cache layers that hold keys un-rotated, with the position of every slot.

They stand in for transformers' `DynamicLayer` in a `DynamicCache`. Stored keys have no position baked in: a method
decides where each key is read. Positions are per row and slot, negative where nothing is seen (see `KeyValues`).
"""

# B batch, G key/value heads, S stored slots, L new tokens, T tokens read so far, D head dim
from __future__ import annotations

from collections.abc import Callable, Hashable, Sequence
from typing import Any

import torch
from torch import Tensor
from transformers.cache_utils import CacheLayerMixin

from ..method import LongContextMethod
from .once import Apply, each, made_once
from .slots import BatchRows, KeyValues


class UnrotatedLayer(BatchRows, CacheLayerMixin):
    """The verbs of every un-rotated layer. A subclass implements `keep`, and says what else it can do.

    - `bounded`: its size does not grow with the text. It may then have `far` and `move_back` too.
    - `fixed_buffers`: while single tokens are read, its tensors keep their addresses, which CUDA graphs need. They are
      those of its `ring`, once `before_forward` has made one.
    - `layout`: layers of a cache that are equal in this keep the same slots.
    - `editable_view` and `hold`, where a text can be edited in it (see `hf_longctx.editing`).

    Args:
        owner: The method that writes this layer; a cache is only good for the method that wrote it.
    """

    is_sliding = False
    is_croppable = False
    bounded = False
    fixed_buffers = False
    everything: Any = None  # a `Store` of every token read, where a subclass keeps one to look tokens up in
    adopted = False  # made for a model's cache, in which another may take its place as long as it is empty
    joined = False  # does `update` return the sinks too, before all else? For attention that changes what it gets
    once: Apply = staticmethod(each)  # in a forward, what its layers of one kind share
    _open = False

    def __init__(self, owner: LongContextMethod) -> None:
        super().__init__()
        self.owner = owner
        self.layout: Hashable = type(self).__name__
        self.reset()

    def reset(self) -> None:
        """Forget everything that was read."""
        self.keys: Tensor | None = None
        self.values: Tensor | None = None
        self.pos: Tensor | None = None
        self.column: Tensor | None = None  # of the text, for each slot; None: slot i is column i
        self.seen = 0  # tokens read, padding included: what transformers calls the sequence length
        # how many tokens of each row the states beside it have read (see attention/waiting.py); None: all that were
        self.read_B: Tensor | None = None
        self.padded = False
        self.masked = False  # may some of the tokens kept be hidden, which a later mask, or none, shows again?
        self.is_initialized = False
        self._new_pos: Tensor | None = None
        self.readable_pos: Tensor | None = None  # (B, S): of everything that the current forward may see
        self.sinks: KeyValues | None = None  # the first tokens, where a subclass keeps them apart
        self.evicted_B: Tensor | None = None  # the highest position that was dropped; None: nothing was

    @classmethod
    def before_forward(cls, layers: Sequence[Any], n_new: int | None, learns: Callable[[], bool]) -> None:
        """Prepare all layers of this class in one cache for a forward of `n_new` tokens per row (None: not known).

        `learns()` says whether there will be gradients, which need the keys of every step as they were.
        """
        once = made_once()
        for layer in layers:
            layer.once = once

    def open(self) -> None:
        """Allow the next `update`. A stock model does not call this, and is stopped by an error."""
        self._open = True

    def close(self) -> None:
        """End a forward, also one that failed."""
        self._open, self._new_pos, self.readable_pos = False, None, None
        self.once = each

    def push(self, pos_BL: Tensor, padded: bool, once: Apply | None = None) -> None:
        """Take the positions of the tokens that the next `update` brings, -1 for padding.

        `once` is for a layer that was made after the forward began.
        """
        if once is not None and self.once is each:
            self.once = once
        self._new_pos = pos_BL
        self.padded = self.padded or padded

    def update(self, key_states: Tensor, value_states: Tensor, *args: Any, **kwargs: Any) -> tuple[Tensor, Tensor]:
        """Take L new un-rotated keys; return everything the new queries may see, kept and new, (B, G, S + L, D).

        A `joined` layer returns its sinks too, before the others; `readable_pos` is without them.
        """
        self._check_open()
        assert self._new_pos is not None
        if not self.is_initialized:
            self.lazy_initialization(key_states, value_states)
        readable = self.keep(KeyValues(key_states, value_states, self._new_pos.to(key_states.device)))
        self.readable_pos = readable.pos
        self.seen += key_states.shape[2]
        self._new_pos, self._open = None, False
        if self.joined and self.sinks is not None and len(self.sinks):
            return torch.cat([self.sinks.k, readable.k], 2), torch.cat([self.sinks.v, readable.v], 2)
        return readable.k, readable.v

    def keep(self, new: KeyValues) -> KeyValues:
        """Store what later tokens need of `new` and return what the new tokens may see."""
        raise NotImplementedError

    @property
    def slots(self) -> KeyValues:
        """The stored keys and values, without the sinks."""
        assert self.keys is not None
        assert self.values is not None
        assert self.pos is not None
        return KeyValues(self.keys, self.values, self.pos, self.column)

    def store(self, slots: KeyValues) -> None:
        """Replace the stored keys and values."""
        self.keys, self.values, self.pos, self.column = slots.k, slots.v, slots.pos, slots.column

    def show(self, mask_BT: Tensor) -> None:
        """Hide and show stored tokens as an attention mask over everything read so far says."""
        if self.is_initialized:
            self.store(self.slots.shown(mask_BT))
            self.padded = self.masked = True

    def show_all(self) -> None:
        """Show what masks have hidden: without one, or with ones alone, all that was read is seen."""
        if self.masked:
            assert self.pos is not None
            self.show(torch.ones(len(self.pos), max(self.seen, 1), dtype=torch.bool, device=self.pos.device))
            self.masked = False

    def shows(self, mask_BT: Tensor) -> Tensor:
        """Whether a mask shows exactly the tokens that are shown now: a tensor, for the caller to wait for."""
        return torch.stack([(slots.shown(mask_BT).pos == slots.pos).all() for slots in self._held()]).all()

    def misses(self, first_B: Tensor) -> Tensor:
        """(B,): have rows that continue at these positions lost tokens that they would see?"""
        return torch.zeros_like(first_B, dtype=torch.bool)

    def far(self) -> int | None:
        """The lowest position that the next token may be moved back to; None: its tokens cannot be moved (yet)."""
        return None

    def move_back(self, delta: int) -> None:
        """Lower the positions of the stored tokens by `delta`, so that the next one is at `far()` or after it."""
        raise NotImplementedError

    def nbytes(self) -> int:
        """Bytes of keys, values, positions and columns stored."""
        tensors = [t for slots in self._held() for t in (slots.k, slots.v, slots.pos, slots.column)]
        return sum(t.nbytes for t in tensors if t is not None)

    def map_rows(self, f: Callable[[Tensor], Tensor]) -> None:
        """Replace every tensor that has a row for each of the batch by `f` of it."""
        if self.is_initialized:
            self.store(self.slots.map(f))
            self.sinks = None if self.sinks is None else self.sinks.map(f)
            self.evicted_B = None if self.evicted_B is None else f(self.evicted_B)
            self.read_B = None if self.read_B is None else f(self.read_B)

    def _held(self) -> list[KeyValues]:
        return [s for s in (self.slots if self.is_initialized else None, self.sinks) if s is not None]

    def _check_open(self) -> None:
        if not self._open:
            raise RuntimeError(
                f"this cache holds un-rotated keys written under {self.owner!r}, and a model without that method "
                f"cannot read it. Apply the method again, or start with a new cache."
            )

    def lazy_initialization(self, key_states: Tensor, value_states: Tensor) -> None:
        """Learn the first keys' dtype, device and shape."""
        self.dtype, self.device = key_states.dtype, key_states.device
        self.keys, self.values = key_states[:, :, :0], value_states[:, :, :0]
        self.pos = torch.empty(len(key_states), 0, dtype=torch.long, device=self.device)
        self.is_initialized = True

    def get_seq_length(self) -> int:
        """Tokens read, padding included."""
        return self.seen

    def get_mask_sizes(self, query_length: int) -> tuple[int, int]:
        """The length of an attention mask, and the column of the text that it begins at."""
        self._check_open()
        return self.seen + query_length, 0

    def get_max_length(self) -> int:
        """No limit."""
        return -1

    def crop(self, tokens_to_remove: int) -> None:
        """Refuse to take tokens back out."""
        if tokens_to_remove:
            raise RuntimeError(
                f"{self.owner!r}: its cache cannot be cropped. Read the text again with a new one. Assisted decoding "
                f"crops it: generate without an assistant, or undo the method of the assistant model."
            )
