"""PIE for a batch: each row of a cache follows the edits of its own text, in one forward for all rows."""

# B rows, N tokens of the longest new text
from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from transformers import Cache

from ..anatomy import attention_layers, find_decoder
from ..patch import unwrap
from ..upstream.caches import generate_cache
from .difference import Ids
from .edit import CHUNK, EditReport, commit, device_of, report_of
from .editable import check_cache, check_model, check_tokens, ids_of
from .placed import RowEdit, placed_works, read_placed, why_not_placed
from .plan import compare, make_plan, repair_of


@dataclass(frozen=True)
class EditedBatch:
    """A batch after its edits: `model.generate(**batch.inputs)` continues.

    Attributes:
        cache: The caller's cache; it holds all of `input_ids` but the last column.
        input_ids: (B, N), the new texts, padded on the left.
        attention_mask: (B, N), 0 for padding.
        reports: One per row; their seconds are those of the whole batch.
    """

    cache: Cache
    input_ids: Tensor
    attention_mask: Tensor
    reports: list[EditReport]

    @property
    def inputs(self) -> dict[str, Any]:
        """Keyword arguments for `generate`."""
        return {"input_ids": self.input_ids, "attention_mask": self.attention_mask, **generate_cache(self.cache)}


@torch.no_grad()
def edit_batch(
    model: Any, cache: Cache, old_ids: Sequence[Any], new_ids: Sequence[Any], repair: int | None = None
) -> EditedBatch:
    """Make a cache of several texts hold their edited versions; `edit` for each row, in one forward.

    Rows are padded on the left, before and after, and each may change its length. The cache is changed in place,
    completely or (after an error) not at all.

        rows = [row[real.bool()] for row, real in zip(ids, attention_mask)]  # without padding
        batch = edit_batch(model, cache, rows, edited_rows)
        model.generate(**batch.inputs, max_new_tokens=32)

    Args:
        model: The causal language model that has filled the cache, with stock `sdpa` or `eager` attention.
        cache: A `DynamicCache` whose rows were padded on the left and read with an attention mask, as `generate` does.
            It holds every token of the rows, or all but the last one. Caches of models with sliding windows and
            un-rotated ones are refused: give each of their rows a cache of its own.
        old_ids: The token ids of each row, without padding: a list of lists or of 1-D tensors.
        new_ids: Those of the edited texts.
        repair: Old tokens that are read again for each edit; see `edit`.
    """
    begun = time.perf_counter()
    base: Any = unwrap(model)
    decoder: Any = find_decoder(base)
    repair = repair_of(repair)
    check_model(decoder)
    old = _rows_of(old_ids, "old_ids", decoder)
    new = _rows_of(new_ids, "new_ids", decoder)
    if len(old) != len(new):
        raise ValueError(f"old_ids has {len(old)} rows and new_ids {len(new)}: expected the same number.")
    modules: list[Any] = list(attention_layers(decoder))
    width = check_cache(decoder, modules, cache, max(map(len, old)), len(old))
    reason = why_not_placed(decoder, modules, cache)
    if reason is not None:
        raise ValueError(f"a batch cannot be edited here: {reason}. Read each row into its own cache, and edit that.")
    missing = max(map(len, old)) - width  # 1, if the last token of every row was never read
    if min(map(len, old)) == missing:
        raise ValueError("old_ids has a row of which no token was read. Leave that row out, or read it first.")
    held = [ids[: len(ids) - missing] for ids in old]
    starts = [width - len(ids) for ids in held]
    check_tokens(decoder, modules, cache, held, starts)
    differences = [compare(a, b, len(ids)) for a, b, ids in zip(old, new, held, strict=True)]
    length = max(map(len, new)) - 1
    plans = [make_plan(difference, repair) for difference in differences]
    rows = [
        RowEdit(plan.copies, plan.read, ids[:-1], start, length - len(ids) + 1)
        for plan, ids, start in zip(plans, new, starts, strict=True)
    ]
    seconds_diff = time.perf_counter() - begun
    seconds_move, device = 0.0, device_of(decoder, cache)
    if not all(difference.nothing for difference in differences) or length != width:
        works = placed_works(decoder, modules, cache, rows, length)
        seconds_move = time.perf_counter() - begun - seconds_diff
        read_placed(decoder, works, rows, device, max(4 * CHUNK // len(rows), 1))
        commit(modules, works, cache)
    seconds = (time.perf_counter() - begun, seconds_diff, seconds_move)
    reports = [report_of(difference, plan, seconds) for difference, plan in zip(differences, plans, strict=True)]
    pad = getattr(decoder.config, "pad_token_id", None) or 0
    ids_BN = torch.full((len(new), length + 1), pad)
    mask_BN = torch.zeros_like(ids_BN)
    for r, ids in enumerate(new):
        ids_BN[r, length + 1 - len(ids) :], mask_BN[r, length + 1 - len(ids) :] = torch.from_numpy(ids), 1
    return EditedBatch(cache, ids_BN.to(device), mask_BN.to(device), reports)


def _rows_of(given: Any, name: str, decoder: Any) -> list[Ids]:
    if not isinstance(given, (list, tuple, Tensor)) or not len(given):
        raise ValueError(f"{name}={type(given).__name__}: expected a list of rows, each the token ids of one text.")
    return [ids_of(row, f"{name}[{r}]", decoder) for r, row in enumerate(given)]
