"""Edits of a batch: every row as if it were alone."""

from __future__ import annotations

import copy
from typing import Any

import pytest
import torch
from torch import Tensor
from transformers import DynamicCache

from hf_longctx import PositionFree
from hf_longctx.editing import EditedBatch, edit, edit_batch
from tests.editing.test_edit import EDITS, EVERYTHING, IDS, read
from tests.tiny import greedy_uncached, left_padded, logits_of, text, tiny

FAMILIES = ("llama", "qwen3", "mistral", "smollm3", "gpt_neox")  # Gemma3's windows are refused
OLD = [IDS, IDS[:31], text(1, 44, 7)[0].tolist(), IDS[:5]]
NEW = [EDITS["several"], [*IDS[:31], 5, 6, 7], [9, 9, *OLD[2][:20], *OLD[2][33:]], IDS[:5]]


def read_padded(model: Any, rows: list[list[int]], left_out: int = 0) -> DynamicCache:
    ids, mask = left_padded([torch.tensor(row) for row in rows])
    ids, mask = ids[:, : ids.shape[1] - left_out], mask[:, : mask.shape[1] - left_out]
    cache = DynamicCache()
    pos = (mask.cumsum(1) - 1).clamp(min=0)
    logits_of(model, ids, attention_mask=mask, position_ids=pos, past_key_values=cache, use_cache=True)
    return cache


def last_logits(model: Any, batch: EditedBatch) -> Tensor:
    pos = batch.attention_mask.sum(1, keepdim=True) - 1
    return logits_of(
        model,
        batch.input_ids[:, -1:],
        attention_mask=batch.attention_mask,
        position_ids=pos,
        past_key_values=copy.deepcopy(batch.cache),
        use_cache=True,
    )[:, -1]


@pytest.mark.parametrize("left_out", [0, 1])
@pytest.mark.parametrize("family", FAMILIES)
def test_rows_are_edited_as_if_they_were_alone(family: str, left_out: int) -> None:
    model = tiny(family)
    for repair in (0, 3, EVERYTHING):
        batch = edit_batch(model, read_padded(model, OLD, left_out), OLD, NEW, repair)
        for r, (old, new) in enumerate(zip(OLD, NEW, strict=True)):
            alone, report = edit(model, read(model, old[: len(old) - left_out]), old, new, repair)
            ours = batch.reports[r]
            assert (ours.edits, ours.kept, ours.moved, ours.forwarded, ours.repaired, ours.deleted) == (
                report.edits, report.kept, report.moved, report.forwarded, report.repaired, report.deleted,
            )  # fmt: skip
            for layer, one in zip(batch.cache.layers, alone.layers, strict=True):
                n = len(new) - 1
                torch.testing.assert_close(layer.keys[r : r + 1, :, -n:], one.keys, atol=1e-5, rtol=1e-5)
                torch.testing.assert_close(layer.values[r : r + 1, :, -n:], one.values, atol=1e-5, rtol=1e-5)
        if repair == EVERYTHING:
            expected = [logits_of(model, torch.tensor([new]), use_cache=False)[0, -1] for new in NEW]
            torch.testing.assert_close(last_logits(model, batch), torch.stack(expected), atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("attention", ["sdpa", "eager"])
def test_generate_goes_on_with_the_batch_and_it_is_edited_again(attention: str) -> None:
    model = tiny("llama", attn_implementation=attention)
    batch = edit_batch(model, read_padded(model, OLD), OLD, NEW, EVERYTHING)
    output = model.generate(**batch.inputs, max_new_tokens=5, do_sample=False)
    for r, new in enumerate(NEW):
        assert output[r, -5:].tolist() == greedy_uncached(model, torch.tensor([new]), 5)[0, -5:].tolist()
    width = output.shape[1]
    held = [output[r, width - len(new) - 5 :] for r, new in enumerate(NEW)]
    again = [torch.cat([torch.tensor([8]), row[:-1]]) for row in held]
    batch = edit_batch(model, batch.cache, held, again, EVERYTHING)
    expected = [logits_of(model, row[None], use_cache=False)[0, -1] for row in again]
    torch.testing.assert_close(last_logits(model, batch), torch.stack(expected), atol=1e-5, rtol=1e-5)


def test_rows_that_shrink_to_a_token_and_rows_that_stay() -> None:
    model = tiny("llama")
    for new in ([IDS[:1], OLD[1], [7], OLD[3]], [IDS[:1], IDS[:1], [7], [8]], OLD):
        batch = edit_batch(model, read_padded(model, OLD, 1), OLD, new, EVERYTHING)
        expected = [logits_of(model, torch.tensor([row]), use_cache=False)[0, -1] for row in new]
        torch.testing.assert_close(last_logits(model, batch), torch.stack(expected), atol=1e-5, rtol=1e-5)


def test_no_change_is_no_change() -> None:
    model = tiny("llama")
    cache = read_padded(model, OLD, 1)
    before = [(layer.keys, layer.values) for layer in cache.layers]
    edit_batch(model, cache, OLD, OLD)
    assert all(layer.keys is k and layer.values is v for layer, (k, v) in zip(cache.layers, before, strict=True))


BAD: dict[str, tuple[Any, Any, str]] = {
    "one text": (IDS, IDS, r"old_ids\[0\] of shape"),
    "no rows": ([], NEW, "expected a list of rows"),
    "another number of rows": (OLD, NEW[:2], "4 rows and new_ids 2"),
    "fewer rows than the cache": (OLD[:2], NEW[:2], "the cache has 4 rows and old_ids 2"),
    "other tokens in one row": ([*OLD[:3], [5, 6, 7, 8, 9]], NEW, "it is of other tokens"),
    "a row of nothing": ([*OLD[:3], []], NEW, r"old_ids\[3\].*at least one token id"),
}


@pytest.mark.parametrize("what", BAD)
def test_rows_that_cannot_be_edited(what: str) -> None:
    model = tiny("llama")
    old, new, message = BAD[what]
    cache = read_padded(model, OLD)
    before = [(layer.keys, layer.values) for layer in cache.layers]
    with pytest.raises(ValueError, match=message):
        edit_batch(model, cache, old, new)
    assert all(layer.keys is k and layer.values is v for layer, (k, v) in zip(cache.layers, before, strict=True))


def test_caches_whose_rows_cannot_be_edited_together() -> None:
    for model, reason in ((tiny("gemma3"), "attend in windows"), (tiny("mistral", sliding_window=90), "in windows")):
        with pytest.raises(ValueError, match=f"a batch cannot be edited here: .*{reason}.*its own cache"):
            edit_batch(model, read_padded(model, OLD), OLD, NEW)
    model = tiny("llama")
    with PositionFree().on(model), pytest.raises(ValueError, match="its layers are FullLayers"):
        edit_batch(model, read_padded(model, OLD), OLD, NEW)
