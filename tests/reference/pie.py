"""PIE as the paper writes it (He et al. 2024, arXiv 2407.03157, section 3), one edit of one text, in float64.

Tokens start .. end - 1 of a text are replaced by new ones. Keys and values before the edit stay; the new tokens are
read on top of them. A key after it was rotated to its position j and is multiplied by R_shift, which makes it one of
position j + shift; its value stays.
"""

# S length, D head dim
from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from transformers import DynamicCache

from tests.reference.lm_infinite import rotated
from tests.reference.rope import scaled


@torch.no_grad()
def edited_keys_and_values(
    model: Any, ids: list[int], start: int, end: int, new: list[int]
) -> list[tuple[Tensor, Tensor]]:
    """Keys and values of every layer for ids[:start] + new + ids[end:], from those of `ids`. All layers rotate."""
    old, cache = _read(model, DynamicCache(), ids, 0), _read(model, DynamicCache(), ids[:start], 0)
    _read(model, cache, new, start)
    shift = len(new) - (end - start)
    made = []
    for layer, fresh in zip(old.layers, cache.layers, strict=True):
        moved = _moved(layer.keys[0, :, end:], shift, scaled(model.config.rope_parameters, layer.keys.shape[-1])[0])
        keys = torch.cat([layer.keys[:, :, :start], fresh.keys[:, :, start:], moved[None]], 2)
        values = torch.cat([layer.values[:, :, :start], fresh.values[:, :, start:], layer.values[:, :, end:]], 2)
        made.append((keys, values))
    return made


def _moved(k_GSD: Tensor, shift: int, inv_freq_C: Tensor) -> Tensor:
    moved = [rotated(k_D, shift, inv_freq_C) for k_D in k_GSD.double().flatten(0, 1)]
    return torch.stack(moved).view(k_GSD.shape).to(k_GSD.dtype) if moved else k_GSD


def _read(model: Any, cache: Any, ids: list[int], start: int) -> Any:
    if ids:
        pos = torch.arange(start, start + len(ids))[None]
        model(torch.tensor([ids]), position_ids=pos, past_key_values=cache, use_cache=True)
    return cache
