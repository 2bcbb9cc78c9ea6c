"""`edit` against PIE as the paper writes it."""

from __future__ import annotations

import pytest
import torch

from hf_longctx.editing import edit
from tests.editing.test_edit import IDS, read
from tests.reference.pie import edited_keys_and_values
from tests.tiny import tiny

EDITS = {
    "insert": (20, 20, [5, 6, 7]),
    "delete": (20, 27, []),
    "replace": (20, 21, [8]),
    "replace by more": (20, 22, [9, 9, 9, 9]),
    "at the start": (0, 0, [11, 12]),
    "at the end": (58, 60, [4, 5, 6]),
}


@pytest.mark.parametrize("what", EDITS)
@pytest.mark.parametrize("family", ["llama", "qwen3", "gpt_neox"])
def test_an_edit_is_that_of_the_paper(family: str, what: str) -> None:
    model = tiny(family)
    start, end, new = EDITS[what]
    cache, _ = edit(model, read(model, IDS), IDS, [*IDS[:start], *new, *IDS[end:]], repair=0)
    for layer, (keys, values) in zip(cache.layers, edited_keys_and_values(model, IDS, start, end, new), strict=True):
        # the last token is left to the next forward; fp32 rounding of O(1) numbers
        torch.testing.assert_close(layer.keys, keys[:, :, :-1], rtol=1e-5, atol=1e-5)
        torch.testing.assert_close(layer.values, values[:, :, :-1], rtol=1e-5, atol=1e-5)


def test_several_edits_at_once_are_those_of_the_paper_one_after_the_other() -> None:
    model = tiny("llama", num_hidden_layers=1)  # in one layer, keys and values follow from token and position
    new = [*IDS[:10], 3, *IDS[12:40], 4, 5, 6, *IDS[40:]]
    cache, _ = edit(model, read(model, IDS), IDS, new, repair=0)
    ((keys, values),) = edited_keys_and_values(model, [*IDS[:40], 4, 5, 6, *IDS[40:]], 10, 12, [3])
    torch.testing.assert_close(cache.layers[0].keys, keys[:, :, :-1], rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(cache.layers[0].values, values[:, :, :-1], rtol=1e-5, atol=1e-5)
