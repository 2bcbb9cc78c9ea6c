"""Reading tokens at any places of several texts in one forward: each attends to the tokens before it in its own text.

Rows are padded on the left, as `generate` pads them: row r of length n_r is in the last n_r columns. For plain
`DynamicLayer`s, full attention and stock kernels that take a mask.
"""

# B rows, G key/value heads, L tokens of a forward, N columns of the new cache, D head dim
from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from transformers import Cache
from transformers.cache_utils import DynamicLayer

from ..anatomy import FULL, layer_types
from ..attention.rerotate import Mover
from ..cache.stock import is_plain
from ..upstream.caches import given_cache
from .difference import Ids, Match
from .editable import caches_nothing
from .workspace import Span

MASKED = ("sdpa", "eager")  # attention implementations that take a mask


@dataclass(frozen=True)
class RowEdit:
    """The edit of one row.

    Attributes:
        copies: Stretches of its old text that stay, perhaps elsewhere.
        read: Tokens to read, in places of the new text.
        ids: The new text, as far as the cache is to hold it.
        old_start: The column of its first token before the edit; the columns before it are padding.
        start: The same after the edit.
    """

    copies: Sequence[Match]
    read: Sequence[Span]
    ids: Ids
    old_start: int = 0
    start: int = 0

    @property
    def places(self) -> NDArray[np.int64]:
        """The positions to read, rising."""
        return np.concatenate([np.arange(0), *(np.arange(span.start, span.end) for span in self.read)])


def why_not_placed(decoder: Any, modules: Sequence[Any], cache: Cache) -> str | None:
    """The reason why tokens of this cache cannot be read at any places; None if they can."""
    other = next((layer for layer in cache.layers if not is_plain(layer)), None)
    if other is not None:
        return f"its layers are {type(other).__name__}s"
    if decoder.config._attn_implementation not in MASKED:
        return f"attn_implementation={decoder.config._attn_implementation!r} takes no custom mask"
    if any(kind != FULL for kind in layer_types(modules)):
        return "some layers attend in windows"
    return None


class BufferLayer(DynamicLayer):
    """A layer in the making: the keys and values of whole texts, in whose columns forwards write."""

    def __init__(self, keys: Tensor, values: Tensor) -> None:
        super().__init__()
        self.keys, self.values, self.is_initialized = keys, values, True

    def get_mask_sizes(self, query_length: int) -> tuple[int, int]:
        """All columns, from the first one."""
        return self.keys.shape[2], 0

    def commit(self, layer: Any) -> None:
        """Put the finished keys and values into the caller's layer."""
        layer.keys, layer.values = self.keys, self.values


class PlacedWork(BufferLayer):
    """A `DynamicLayer` in the making: the tokens that stay are in their columns, and forwards fill the others.

    Args:
        layer: The caller's, which is not changed before `commit`.
        rows: One for every row of the batch.
        length: N, columns of the new cache.
        move: Keys (1, G, n, D), the position of the first one, by how much -> keys there.
    """

    def __init__(
        self, layer: DynamicLayer, rows: Sequence[RowEdit], length: int, move: Callable[[Tensor, int, int], Tensor]
    ) -> None:
        k: Any = layer.keys
        v: Any = layer.values
        # zeros where there is padding: masked values are multiplied by 0, which nan would survive
        new = torch.Tensor.new_zeros if any(row.start for row in rows) else torch.Tensor.new_empty
        super().__init__(*(new(x, (*x.shape[:2], length, x.shape[3])) for x in (k, v)))
        for r, row in enumerate(rows):
            for old, at, n in row.copies:
                source = slice(row.old_start + old, row.old_start + old + n)
                target = slice(row.start + at, row.start + at + n)
                self.keys[r : r + 1, :, target] = move(k[r : r + 1, :, source], old, at - old)
                self.values[r, :, target] = v[r, :, source]
        self.written = True

    def begin(self, columns_BL: Tensor, kept_B: Tensor) -> None:
        """The columns of the tokens that the next forward brings, and the rows for which it brings any."""
        self.columns, self.kept, self.written = columns_BL, kept_B[:, None, None, None], False

    def update(self, key_states: Tensor, value_states: Tensor, *args: Any, **kwargs: Any) -> tuple[Tensor, Tensor]:
        """Write the new keys and values of rows that read something."""
        device = key_states.device
        columns, kept = self.columns.to(device), self.kept.to(device)
        rows = torch.arange(len(columns), device=device)[:, None]
        for buffer, new in ((self.keys, key_states), (self.values, value_states)):
            buffer[rows, :, columns] = torch.where(kept, new.transpose(1, 2), buffer[rows, :, columns])
        self.written = True
        return self.keys, self.values


def placed_works(
    decoder: Any, modules: Sequence[Any], cache: Cache, rows: Sequence[RowEdit], length: int
) -> list[PlacedWork]:
    """The layers in the making of every attention module, with the tokens that stay."""
    layers: Any = cache.layers
    mover = Mover(decoder)
    return [PlacedWork(layers[int(m.layer_idx)], rows, length, partial(mover.move, m)) for m in modules]


def read_placed(
    decoder: Any, works: Sequence[PlacedWork], rows: Sequence[RowEdit], device: torch.device, chunk: int
) -> None:
    """Read the new tokens of every row, `chunk` tokens of each at a time."""
    places = [row.places for row in rows]
    longest = max(map(len, places))
    # a row with less to read repeats its last token; one with nothing to read reads its last token and keeps nothing
    last = [int(at[-1]) if len(at) else len(row.ids) - 1 for at, row in zip(places, rows, strict=True)]
    padded = [np.pad(at, (0, longest - len(at)), constant_values=end) for at, end in zip(places, last, strict=True)]
    tokens = [row.ids[at] if len(row.ids) else at.clip(min=0) for row, at in zip(rows, padded, strict=True)]
    pos_BL, ids_BL = (torch.from_numpy(np.stack(each)) for each in (padded, tokens))
    start_B1 = torch.tensor([[row.start] for row in rows], device=device)
    kept_B = torch.tensor([len(at) > 0 for at in places], device=device)
    columns_N = torch.arange(works[0].keys.shape[2], device=device)
    for begin in range(0, longest, chunk):
        pos, ids = (t[:, begin : begin + chunk].to(device) for t in (pos_BL, ids_BL))
        at = pos + start_B1
        for work in works:
            work.begin(at, kept_B)
        seen = (columns_N <= at[..., None]) & (columns_N >= start_B1[..., None])
        seen |= columns_N == at[..., None]  # a row that is to hold nothing: its softmax needs a key
        mask: Any = seen[:, None]
        if decoder.config._attn_implementation == "eager":
            dtype = works[0].keys.dtype
            mask = torch.zeros(mask.shape, dtype=dtype, device=device).masked_fill(~mask, torch.finfo(dtype).min)
        decoder(
            input_ids=ids,
            position_ids=pos,
            attention_mask=mask,
            **given_cache(decoder, Cache(layers=list(works))),
            use_cache=True,
        )
        if not all(work.written for work in works):
            raise caches_nothing(decoder)
