"""Training of models of the families in which attention methods are seen through other code: gradient checkpointing."""

from __future__ import annotations

from typing import Any

import pytest
from torch import Tensor

from hf_longctx import LMInfinite
from tests.contract.registry import close
from tests.families.table import model_of
from tests.tiny import left_padded, text

WINDOW = LMInfinite(n_global=3, n_local=7)
BATCHES = [left_padded([text(1, length, seed=length)[0] for length in lengths]) for lengths in ((9, 17), (17, 12))]


@pytest.mark.parametrize("family", ["gemma4_text", "llama4_text", "deepseek_v2", "falcon", "gptj", "hrm_text"])
def test_gradients_of_two_forwards_are_those_without_checkpointing(family: str) -> None:
    """The second forward's padding is another: nothing of it may be taken for the first one's."""
    model = model_of(family).train().requires_grad_(True)
    WINDOW.apply(model)

    def gradients() -> dict[str, Tensor]:
        model.zero_grad()
        loss: Any = 0
        for ids, mask in BATCHES:
            loss = loss + model(ids, attention_mask=mask, labels=ids.masked_fill(mask == 0, -100)).loss
        loss.backward()
        return {name: p.grad.clone() for name, p in model.named_parameters() if p.grad is not None}

    plain = gradients()
    model.gradient_checkpointing_enable({"use_reentrant": False})
    again = gradients()
    assert again.keys() == plain.keys()
    for name, gradient in plain.items():
        close(again[name], gradient, name)
