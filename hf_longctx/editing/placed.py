"""Reading tokens at any places of several texts in one forward, each seeing what stands before it in its own text.

Rows are padded on the left, as `generate` pads them: row r of length n_r stands in the last n_r columns. Only plain
`DynamicLayer`s, full attention and stock kernels that take a mask.
"""

# B rows, G key/value heads, L tokens of a forward, N columns of the new cache, D head dim
from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from transformers import Cache
from transformers.cache_utils import CacheLayerMixin, DynamicLayer

from ..anatomy import FULL, layer_types
from ..cache.stock import is_plain
from ..upstream.caches import given_cache
from .difference import Ids, Match
from .editable import caches_nothing
from .workspace import Span

MASKED = ("sdpa", "eager")  # attention implementations that take a mask


@dataclass(frozen=True)
class Row:
    """What becomes of one row.

    Attributes:
        copies: what stays of its old text, perhaps elsewhere.
        fresh: what is read, in places of the new text.
        ids: the new text, as far as the cache is to hold it.
        old_start, start: the column of its first token, before and afterwards; what is before that is padding.
    """

    copies: Sequence[Match]
    fresh: Sequence[Span]
    ids: Ids
    old_start: int = 0
    start: int = 0

    @property
    def places(self) -> NDArray[np.int64]:
        """The positions that are read, rising."""
        return np.concatenate([np.arange(0), *(np.arange(span.start, span.end) for span in self.fresh)])


def why_not(decoder: Any, modules: Sequence[Any], cache: Cache) -> str | None:
    """The reason why tokens of this cache cannot be read at any places; None if they can."""
    other = next((layer for layer in cache.layers if not is_plain(layer)), None)
    if other is not None:
        return f"its layers are {type(other).__name__}s"
    if decoder.config._attn_implementation not in MASKED:
        return f"attn_implementation={decoder.config._attn_implementation!r} takes no mask of our own"
    if any(kind != FULL for kind in layer_types(modules)):
        return "some layers attend in windows"
    return None


class PlacedWork(CacheLayerMixin):
    """A `DynamicLayer` in the making: keys and values of the new texts, with columns that forwards fill.

    Args:
        layer: the caller's, which is left alone until `commit`.
        rows: one for every row of the batch.
        length: N, columns of the new cache.
        move: keys (1, G, n, D), the position of the first one, by how much -> keys there.
    """

    is_sliding = False
    is_initialized = True

    def __init__(
        self, layer: DynamicLayer, rows: Sequence[Row], length: int, move: Callable[[Tensor, int, int], Tensor]
    ) -> None:
        super().__init__()
        k, v = layer.keys, layer.values
        assert k is not None
        assert v is not None
        padded = any(row.start for row in rows)
        # zeros where there is padding: what is masked is multiplied by 0, which nan would survive
        new = torch.Tensor.new_zeros if padded else torch.Tensor.new_empty
        self.k = new(k, (*k.shape[:2], length, k.shape[3]))
        self.v = new(v, (*v.shape[:2], length, v.shape[3]))
        for r, row in enumerate(rows):
            for old, at, n in row.copies:
                source = slice(row.old_start + old, row.old_start + old + n)
                target = slice(row.start + at, row.start + at + n)
                self.k[r : r + 1, :, target] = move(k[r : r + 1, :, source], old, at - old)
                self.v[r, :, target] = v[r, :, source]
        self.is_initialized = True
        self.written = True

    def begin(self, columns_BL: Tensor, kept_B: Tensor) -> None:
        """The columns of the tokens that the next forward brings, and the rows for which it brings any."""
        self.columns, self.kept, self.written = columns_BL, kept_B[:, None, None, None], False

    def lazy_initialization(self, key_states: Tensor, value_states: Tensor) -> None:
        raise AssertionError("filled when it was made")

    def update(self, key_states: Tensor, value_states: Tensor, *args: Any, **kwargs: Any) -> tuple[Tensor, Tensor]:
        device = key_states.device
        columns, kept = self.columns.to(device), self.kept.to(device)
        rows = torch.arange(len(columns), device=device)[:, None]
        for buffer, new in ((self.k, key_states), (self.v, value_states)):
            buffer[rows, :, columns] = torch.where(kept, new.transpose(1, 2), buffer[rows, :, columns])
        self.written = True
        return self.k, self.v

    def get_mask_sizes(self, query_length: int) -> tuple[int, int]:
        return self.k.shape[2], 0

    def get_seq_length(self) -> int:
        return self.k.shape[2]

    def get_max_length(self) -> int:
        return -1

    def commit(self, layer: Any) -> None:
        """Put what was made into the caller's layer."""
        layer.keys, layer.values = self.k, self.v


def read_placed(
    decoder: Any, works: Sequence[PlacedWork], rows: Sequence[Row], device: torch.device, chunk: int
) -> None:
    """Read what is fresh in every row, `chunk` tokens of each at a time."""
    places = [row.places for row in rows]
    most = max(map(len, places))
    # a row with less to read repeats its last token; one with nothing to read looks at its last one and keeps nothing
    padded = [
        np.pad(at, (0, most - len(at)), constant_values=_last(at, row)) for at, row in zip(places, rows, strict=True)
    ]
    tokens = [row.ids[at] if len(row.ids) else at.clip(min=0) for row, at in zip(rows, padded, strict=True)]
    pos_BL, ids_BL = (torch.from_numpy(np.stack(each)) for each in (padded, tokens))
    start_B1 = torch.tensor([[row.start] for row in rows], device=device)
    kept_B = torch.tensor([len(at) > 0 for at in places], device=device)
    columns_N = torch.arange(works[0].k.shape[2], device=device) if works else torch.arange(0)
    for begin in range(0, most, chunk):
        pos, ids = (t[:, begin : begin + chunk].to(device) for t in (pos_BL, ids_BL))
        at = pos + start_B1
        for work in works:
            work.begin(at, kept_B)
        seen = (columns_N <= at[..., None]) & (columns_N >= start_B1[..., None])
        seen |= columns_N == at[..., None]  # a row that is to hold nothing: a softmax needs something to look at
        mask: Any = seen[:, None]
        if decoder.config._attn_implementation == "eager":
            dtype = works[0].k.dtype
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


def _last(at: NDArray[np.int64], row: Row) -> int:
    return int(at[-1]) if len(at) else len(row.ids) - 1
