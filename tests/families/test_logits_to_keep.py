"""`logits_to_keep`: Gemma 4 runs its last layers for the last tokens alone, with the logits of a whole forward."""

from __future__ import annotations

import pytest

from hf_longctx import LMInfinite, PositionFree
from tests.contract.registry import close
from tests.families.table import model_of
from tests.tiny import left_padded, logits_of, text

ROWS = [text(1, length, seed=length)[0] for length in (9, 17)]
WHOLE, PADDED = (text(2, 24), None), left_padded(ROWS)


@pytest.mark.parametrize("keep", [1, 5])
@pytest.mark.parametrize("batch", [WHOLE, PADDED], ids=["whole", "left-padded"])
@pytest.mark.parametrize("family", ["gemma4_text", "gemma3n_text"])
def test_the_logits_that_are_kept_are_those_of_all(family: str, batch: tuple, keep: int) -> None:
    ids, mask = batch
    model = model_of(family)
    stock = logits_of(model, ids, attention_mask=mask)[:, -keep:]
    with PositionFree().on(model):
        close(logits_of(model, ids, attention_mask=mask, logits_to_keep=keep), stock, "the hook alone")
    with LMInfinite(n_global=3, n_local=7).on(model):
        ours = logits_of(model, ids, attention_mask=mask)[:, -keep:]
        close(logits_of(model, ids, attention_mask=mask, logits_to_keep=keep), ours, "a window")
