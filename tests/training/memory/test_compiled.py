"""Models with rungs under torch.compile: the loss and the gradients are those of the stock model."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from tests.parallel.models import batch, checkpointed, make

from .rungs import EXACT, LADDERS, off, small_chunks, step

BATCH = batch([[61]])


@pytest.mark.parametrize("checkpointing", ["", "plain"])
@pytest.mark.parametrize("rungs", [name for name in LADDERS if name.count("+") in (0, 3)])
def test_a_compiled_model(rungs: str, checkpointing: str, monkeypatch: pytest.MonkeyPatch) -> None:
    small_chunks(monkeypatch.setattr)
    right = step(make("llama"), BATCH)
    model: Any = make("llama")
    LADDERS[rungs].apply(model)
    if checkpointing:
        checkpointed(model, checkpointing)
    torch._dynamo.reset()
    model.compile(backend="aot_eager")  # in place: names of parameters stay
    found = step(model, BATCH)
    assert max(off(found, right).values()) < EXACT
