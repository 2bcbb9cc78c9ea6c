"""One prefix for many rows: its keys and values are stored once, and every row of a batch has its own suffix.

Keys are the model's own, rotated at their absolute positions: the prefix at 0 to P - 1, the suffixes from P on. While
single tokens are read, suffixes stand in buffers with room for more (a `Ring` that is never overrun): nothing is copied
per token, and no address changes, which is what CUDA graphs need.
"""

# B batch, G key/value heads, S slots of a suffix, L new tokens, P tokens of the prefix, D head dim
from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor
from transformers.cache_utils import Cache, DynamicLayer

from ..cache.copies import deep_copy, shallow_copy
from ..cache.ring import Ring
from ..cache.slots import BatchRows, show
from ..cache.stock import nbytes

ROOM = 128  # columns that a full buffer grows by at the least; half of what it holds, if that is more


@dataclass(frozen=True, eq=False)
class Level:
    """A part of a prefix: tokens `start` to `end` - 1, and every layer's keys and values of them, (1, G, n, D).

    A sliding-window layer keeps no more of the last ones than a later token can see: n is less than end - start then.
    """

    ids_N: Tensor
    start: int
    keys: tuple[Tensor, ...]
    values: tuple[Tensor, ...]

    @property
    def end(self) -> int:
        """The position after its last token."""
        return self.start + len(self.ids_N)

    def positions(self, layer: int) -> Tensor:
        """(1, n): those of the keys that a layer keeps."""
        keys = self.keys[layer]
        return torch.arange(self.end - keys.shape[2], self.end, device=keys.device)[None]

    def without_last(self) -> Level:
        """The same tensors, seen without the last token."""
        keys, values = (tuple(t[:, :, :-1] for t in tensors) for tensors in (self.keys, self.values))
        return Level(self.ids_N[:-1], self.start, keys, values)

    def nbytes(self) -> int:
        """Bytes of all keys and values."""
        return sum(t.nbytes for t in (*self.keys, *self.values))

    def __deepcopy__(self, memo: Any) -> Level:
        return self  # one copy, also when a cache is copied


@dataclass
class SharedStep:
    """One forward: the values that are the same for every layer."""

    q_pos_BL: Tensor  # true positions, -1 for padding
    k_pos_BS: Tensor  # of the suffixes, the new tokens included
    padded: bool
    mask: Tensor  # stands for the attention mask, so that transformers makes none
    memo: dict[Any, Any] = field(default_factory=dict)

    def positions(self, level: Level, layer: int) -> Tensor:
        """(1, n): those of a level's keys, made once for all layers that keep as many."""
        keys = level.keys[layer]
        place = "positions", level.start, keys.shape[2], keys.device
        if place not in self.memo:
            self.memo[place] = level.positions(layer)
        pos: Tensor = self.memo[place]
        return pos


@dataclass
class Current:
    """The forward in progress, shared by a cache and its layers."""

    step: SharedStep | None = None


class SharedLayer(BatchRows, DynamicLayer):
    """The suffixes of one layer, after a prefix that it only points to."""

    fixed_buffers = True
    padded = False
    seen = 0  # kept by graphs for layers that forget; this one does not
    keys: Tensor
    values: Tensor

    def __init__(self, levels: tuple[Level, ...], index: int, current: Current) -> None:
        super().__init__()
        self.levels, self.index, self.current = levels, index, current
        self.prefix_length = levels[-1].end if levels else 0
        self.ring: Ring | None = None

    @property
    def own_length(self) -> int:
        """Tokens of the suffixes."""
        if self.ring is not None:
            return self.ring.filled
        return self.keys.shape[-2] if self.is_initialized and self.keys is not None and self.keys.numel() else 0

    def update(self, key_states: Tensor, value_states: Tensor, *args: Any, **kwargs: Any) -> tuple[Tensor, Tensor]:
        """Keep L new keys and values; return those of the suffixes, (B, G, S + L, D)."""
        if self.current.step is None:
            raise RuntimeError(
                "this cache stands after a shared prefix, and the model is not (or no longer) inside "
                "`with shared_prefix(model, ...)`. Call prefix.generate inside of it, or start with a new cache."
            )
        if self.ring is None:
            return super().update(key_states, value_states)
        self.ring.write(self.keys, self.values, key_states, value_states)
        n = self.ring.readable
        return self.keys[:, :, :n], self.values[:, :, :n]

    def positions(self, step: SharedStep) -> Tensor:
        """(B, S): those of the keys that `update` returned."""
        return step.k_pos_BS if self.ring is None else self.ring.pos_BN[:, : self.ring.readable]

    def to_ring(self, ring: Ring) -> None:
        """Continue in buffers of as many columns as `ring` has."""
        self.to_order()
        self.keys, self.values, self.ring = ring.buffer(self.keys), ring.buffer(self.values), ring

    def to_order(self) -> None:
        """Go back from buffers to tensors without empty columns."""
        if self.ring is not None:
            filled = self.ring.filled
            self.keys, self.values, self.ring = self.keys[:, :, :filled], self.values[:, :, :filled], None

    def get_seq_length(self) -> int:
        """Tokens of the prefix and of a suffix."""
        return self.prefix_length + self.own_length

    def crop(self, tokens_to_remove: int) -> None:
        """Take tokens back out of the suffixes; ValueError if they have fewer."""
        if abs(tokens_to_remove) > self.own_length:
            raise ValueError(
                f"crop({tokens_to_remove}): the suffixes after this shared prefix have {self.own_length} tokens. "
                f"Crop at most those; the prefix is shared and stays."
            )
        self.to_order()
        super().crop(tokens_to_remove)

    def offload(self) -> None:
        """Refuse to move elsewhere."""
        raise RuntimeError("a cache after a shared prefix is not offloaded. Leave cache_implementation out.")

    def reorder_cache(self, beam_idx: Tensor) -> None:
        """Choose the batch's rows again, for beam search; in buffers, in place."""
        if self.ring is None or self.ring.sealed:
            super().reorder_cache(beam_idx)
        else:
            self.ring.reorder(self, (self.keys, self.values), beam_idx)

    def map_rows(self, f: Callable[[Tensor], Tensor]) -> None:
        """`f` of the suffixes alone: the prefix has no batch."""
        self.to_order()
        if self.own_length:
            self.keys, self.values = f(self.keys), f(self.values)


class SharedCache(Cache):
    """A cache of suffixes after `levels`. `owner` is the prefix that made it.

    `most` is how many tokens a suffix will have at the most, if that is known: its buffers are no longer than that.
    """

    shares_prefix = True

    def __init__(self, levels: tuple[Level, ...], n_layers: int, owner: Any = None) -> None:
        self.current, self.owner, self.padded = Current(), owner, False
        self.masked = False  # may single tokens have found some hidden?
        self.most: int | None = None
        self.broken = False  # a forward broke off between two layers
        super().__init__(layers=[SharedLayer(levels, index, self.current) for index in range(n_layers)])

    __copy__ = shallow_copy

    def __deepcopy__(self, memo: Any) -> SharedCache:
        """Suffixes of its own after the same prefix, which holds the model."""
        return deep_copy(self, memo, self.owner)

    def __reduce_ex__(self, protocol: Any) -> Any:
        raise TypeError(
            "a cache of a shared prefix cannot be pickled: its prefix belongs to a model. Save the prefix "
            "(prefix.save(path)), use load_prefix(model, path) where it is needed, and read the turns again, from "
            "prefix.cache() on. For a second cache of the same turns, copy.deepcopy(cache)."
        )

    @property
    def prefix_length(self) -> int:
        """Tokens of the prefix."""
        return self.layers[0].prefix_length

    @property
    def rows(self) -> int | None:
        """The batch size, once something was read."""
        layer = self.layers[0]
        return layer.keys.shape[0] if layer.own_length else None

    def nbytes(self) -> int:
        """Bytes of the suffixes; the prefix's are `Prefix.nbytes`, however many caches point to it."""
        return nbytes(self)

    def begin(
        self, mask_BP: Tensor | None, batch: int, new: int, device: torch.device, pos_BL: Tensor | None = None
    ) -> SharedStep:
        """Work out the positions of a forward of `new` tokens per row.

        Args:
            mask_BP: 1 for every token read so far and for the new ones, 0 for padding; the prefix's included.
            batch: The number of rows.
            new: New tokens per row.
            device: Where the new tokens are.
            pos_BL: Their positions, where the caller knows them. Only a single token's are used.
        """
        self.check_whole()
        own = self.layers[0].own_length + new
        if mask_BP is not None and (mask_BP.ndim != 2 or mask_BP.shape[1] != self.prefix_length + own):
            raise ValueError(
                f"attention_mask of shape {tuple(mask_BP.shape)}: after a shared prefix of {self.prefix_length} "
                f"tokens it must be (batch, {self.prefix_length + own}), ones for the prefix and ones and zeros for "
                f"the suffixes."
            )
        if new == 1 and own > 1 and not torch.is_grad_enabled():  # gradients need the keys as they were, no buffers
            step = self._single(mask_BP, batch, device, pos_BL)
        else:
            self.to_order()
            pos, self.padded = self._ranks(mask_BP, batch, own, device)
            q_pos = pos[:, -new:]
            step = SharedStep(q_pos, pos, self.padded, _stand_in(q_pos))
        self.current.step = step
        return step

    def to_order(self) -> None:
        """Go back from buffers to tensors without empty columns, in every layer."""
        for layer in self.layers:
            layer.to_order()

    def check_whole(self) -> None:
        """RuntimeError if some layers have read on and others have not."""
        if self.broken:
            raise RuntimeError(
                "a forward pass through this cache broke off half-way: some layers have read on and others have not. "
                "Start with a new one, prefix.cache(); the prefix itself is whole."
            )

    def end(self, whole: bool = True) -> None:
        """End a forward, also one that failed: it is not `whole` then."""
        self.broken = self.broken or (not whole and self.current.step is not None)
        self.current.step = None
        for ring in self._rings():
            ring.end()

    def _ranks(self, mask_BP: Tensor | None, batch: int, own: int, device: torch.device) -> tuple[Tensor, bool]:
        """The positions of the last `own` tokens, -1 for padding, and whether there is any."""
        if mask_BP is None:
            return self.prefix_length + torch.arange(own, device=device).expand(batch, own), False
        real = mask_BP[:, self.prefix_length : self.prefix_length + own].to(device).bool()
        return torch.where(real, self.prefix_length + real.long().cumsum(1) - 1, -1), not bool(real.all())

    def _single(self, mask_BP: Tensor | None, batch: int, device: torch.device, pos_BL: Tensor | None) -> SharedStep:
        """The step of a single token per row, with its place in the buffers."""
        self._roll(mask_BP, batch, device)
        rings = self._rings()
        if mask_BP is not None or self.masked:  # it may hide tokens of suffixes, those after a row's end among them
            self.masked = mask_BP is not None
            for ring in rings:
                kept = ring.pos_BN[:, : ring.filled]
                own_BS = kept.new_ones(kept.shape) if mask_BP is None else mask_BP[:, self.prefix_length : -1]
                kept.copy_(show(kept, None, (own_BS != 0).to(kept.device)))
        if pos_BL is None:
            pos = rings[0].pos_BN.amax(1, keepdim=True).clamp(min=self.prefix_length - 1).to(device) + 1
        else:
            pos = pos_BL.to(device).expand(batch, 1)
        if mask_BP is not None:  # whether all is real is not looked up: a sync is too much for every token
            pos = torch.where(mask_BP[:, -1:].to(device) != 0, pos, -1)
        for ring in rings:
            ring.begin(pos.to(ring.pos_BN.device))
        return SharedStep(pos, rings[0].pos_BN[:, : rings[0].readable], True, _stand_in(pos))

    def _roll(self, mask_BP: Tensor | None, batch: int, device: torch.device) -> None:
        """Give every layer buffers with a free column, sharing their positions."""
        rings = self._rings()
        if all(layer.ring is not None for layer in self.layers) and not any(ring.must_grow for ring in rings):
            return
        filled = self.layers[0].own_length
        if rings and all(layer.ring is not None for layer in self.layers):
            pos = rings[0].pos_BN[:, :filled].to(device)
        else:
            pos = self._ranks(mask_BP, batch, filled, device)[0]
        size = filled + max(ROOM, filled // 2)
        if self.most is not None and self.most > filled:
            size = min(size, self.most)
        new: dict[torch.device, Ring] = {}
        for layer in self.layers:
            where = layer.keys.device
            if where not in new:
                # a mask's columns and the buffers' are the same, so padding takes its place too
                ring = new[where] = Ring(batch, size, where, start=filled, read=filled, waiting_moves=True)
                ring.pos_BN[:, :filled] = pos
                # a graph reads all columns; kernels compiled for that number now need not be while it is recorded
                ring.whole = where.type == "cuda"
            layer.to_ring(new[where])

    def _rings(self) -> list[Ring]:
        """The rings of the layers: one per device."""
        return list(dict.fromkeys(layer.ring for layer in self.layers if layer.ring is not None))


def _stand_in(q_pos_BL: Tensor) -> Tensor:
    return (q_pos_BL >= 0)[:, None, None, :]
