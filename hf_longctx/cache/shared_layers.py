"""One prefix for many rows: its keys and values are stored once, and every row of a batch has its own suffix.

Keys are the model's own, rotated at their absolute positions: the prefix at 0 to P - 1, the suffixes from P on.
"""

# B batch, G key/value heads, S slots of a suffix, L new tokens, P tokens of the prefix, D head dim
from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor
from transformers.cache_utils import Cache, DynamicLayer

from .layers import Rows


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
        return self.start + len(self.ids_N)

    def positions(self, layer: int) -> Tensor:
        """(1, n)"""
        keys = self.keys[layer]
        return torch.arange(self.end - keys.shape[2], self.end, device=keys.device)[None]

    def without_last(self) -> Level:
        """The same tensors, seen without the last token."""
        keys, values = (tuple(t[:, :, :-1] for t in tensors) for tensors in (self.keys, self.values))
        return Level(self.ids_N[:-1], self.start, keys, values)

    def nbytes(self) -> int:
        return sum(t.numel() * t.element_size() for t in (*self.keys, *self.values))

    def __deepcopy__(self, memo: Any) -> Level:
        return self  # one copy, also when a cache is copied


@dataclass
class Step:
    """One forward: what is the same for every layer."""

    q_pos_BL: Tensor  # true positions, -1 for padding
    k_pos_BS: Tensor  # of the suffixes, the new tokens included
    padded: bool
    mask: Tensor  # stands for the attention mask, so that transformers makes none
    memo: dict[Any, Any] = field(default_factory=dict)


@dataclass
class Current:
    """The forward in progress, shared by a cache and its layers."""

    step: Step | None = None


class SharedLayer(Rows, DynamicLayer):
    """The suffixes of one layer, behind a prefix that it only points to."""

    def __init__(self, levels: tuple[Level, ...], index: int, current: Current) -> None:
        super().__init__()
        self.levels, self.index, self.current = levels, index, current
        self.prefix_length = levels[-1].end if levels else 0

    @property
    def own_length(self) -> int:
        return self.keys.shape[-2] if self.is_initialized and self.keys is not None and self.keys.numel() else 0

    def update(self, key_states: Tensor, value_states: Tensor, *args: Any, **kwargs: Any) -> tuple[Tensor, Tensor]:
        """Keep L new keys and values; return those of the suffixes, (B, G, S + L, D)."""
        if self.current.step is None:
            raise RuntimeError(
                "this cache stands behind a shared prefix, and the model is not (or no longer) inside "
                "`with shared_prefix(model, ...)`. Call prefix.generate inside of it, or start with a new cache."
            )
        return super().update(key_states, value_states)

    def get_seq_length(self) -> int:
        return self.prefix_length + self.own_length

    def get_mask_sizes(self, query_length: int) -> tuple[int, int]:
        return self.get_seq_length() + query_length, 0

    def crop(self, tokens_to_remove: int) -> None:
        if abs(tokens_to_remove) > self.own_length:
            raise ValueError(
                f"crop({tokens_to_remove}): the suffixes behind this shared prefix have {self.own_length} tokens. "
                f"Crop at most those; the prefix is shared and stays."
            )
        super().crop(tokens_to_remove)

    def offload(self) -> None:
        raise RuntimeError("a cache behind a shared prefix is not offloaded. Leave cache_implementation out.")

    def _map(self, f: Any) -> None:
        """The suffixes alone: the prefix has no batch."""
        if self.own_length:
            self.keys: Tensor = f(self.keys)
            self.values: Tensor = f(self.values)


class SharedCache(Cache):
    """A cache of suffixes behind `levels`. `owner` is the prefix that made it."""

    def __init__(self, levels: tuple[Level, ...], n_layers: int, owner: Any = None) -> None:
        self.current, self.owner, self.padded = Current(), owner, False
        super().__init__(layers=[SharedLayer(levels, index, self.current) for index in range(n_layers)])

    @property
    def prefix_length(self) -> int:
        return self.layers[0].prefix_length

    @property
    def rows(self) -> int | None:
        """The batch size, once something was read."""
        layer = self.layers[0]
        return layer.keys.shape[0] if layer.own_length else None

    def nbytes(self) -> int:
        """Bytes of the suffixes; the prefix's are `Prefix.nbytes`, however many caches point to it."""
        held = [t for layer in self.layers if layer.own_length for t in (layer.keys, layer.values)]
        return sum(t.numel() * t.element_size() for t in held)

    def begin(self, mask_BP: Tensor | None, batch: int, new: int, device: torch.device) -> Step:
        """Work out the positions of a forward of `new` tokens a row, from the mask of everything read so far."""
        own = self.layers[0].own_length + new
        if mask_BP is None:
            rank = torch.arange(own, device=device).expand(batch, own)
            pos, padded = self.prefix_length + rank, False
        else:
            width = self.prefix_length + own
            if mask_BP.ndim != 2 or mask_BP.shape[1] != width:
                raise ValueError(
                    f"attention_mask of shape {tuple(mask_BP.shape)}: behind a shared prefix of {self.prefix_length} "
                    f"tokens it must be (batch, {width}), ones for the prefix and ones and zeros for the suffixes."
                )
            real = mask_BP[:, self.prefix_length :].to(device).bool()
            # a written token is real: asking costs a sync, too much for every token
            padded = self.padded if new == 1 and own > 1 else not bool(real.all())
            pos = torch.where(real, self.prefix_length + real.long().cumsum(1) - 1, -1)
        self.padded = padded
        q_pos = pos[:, -new:]
        step = Step(q_pos, pos, padded, (q_pos >= 0)[:, None, None, :])
        self.current.step = step
        return step

    def end(self) -> None:
        self.current.step = None
