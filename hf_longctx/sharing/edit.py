"""PIE on a shared prefix: the last level follows the edits of its text."""

# G key/value heads, P tokens of the prefix, D head dim
from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from transformers import DynamicCache

from ..editing.edit import EditReport, edit
from .layers import Level


def edit_level(decoder: Any, levels: tuple[Level, ...], new_P: Tensor, repair: int | None) -> tuple[Level, EditReport]:
    """The last level with `new_P` for its tokens, and the report; the given levels are not changed.

    ValueError where sliding-window layers keep only a window of the prefix: evicted keys cannot be moved.
    """
    for level in levels:
        if any(keys.shape[2] < len(level.ids_N) for keys in level.keys):
            raise ValueError(
                "this prefix keeps a window of its tokens in sliding-window layers, so an edit cannot attend to the "
                "tokens before it. Share the new text: shared_prefix(model, ids)."
            )
    cache, start = DynamicCache(), levels[-1].start
    for i in range(len(levels[0].keys)):
        cache.update(
            torch.cat([level.keys[i] for level in levels], 2),
            torch.cat([level.values[i] for level in levels], 2),
            i,
        )
    before = [level.ids_N for level in levels[:-1]]
    # edit leaves the last token to the next forward, and a prefix holds all of its tokens
    end = levels[-1].ids_N[-1:]
    old, new = (torch.cat([*before, ids, end]) for ids in (levels[-1].ids_N, new_P))
    _, report = edit(decoder, cache, old, new, repair)
    layers: Any = cache.layers
    # copies: slices would keep the tensors of all levels alive
    keys = tuple(layer.keys[:, :, start:].clone() for layer in layers)
    values = tuple(layer.values[:, :, start:].clone() for layer in layers)
    return Level(new_P, start, keys, values), report
