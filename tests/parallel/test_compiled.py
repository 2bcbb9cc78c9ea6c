"""A model under the switch and torch.compile: steps of batches of different lengths are those of one process."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from hf_longctx import SequenceParallel

from .models import batch, checkpointed, make, off_gradients, relative
from .pool import Pool

BATCHES = [[[40, 21]], [[33], [5], [20]], [[57]]]
EXACT = 1e-5


def stock_steps() -> list[tuple[float, dict[str, Any]]]:
    found = []
    for rows in BATCHES:
        model = make("gemma3")
        loss = model(**batch(rows), use_cache=False).loss
        loss.backward()
        found.append((float(loss.detach()), {name: p.grad for name, p in model.named_parameters()}))
    return found


def compiled_steps(checkpointing: str) -> float:
    """How far a compiled model on a rank is from one stock process, in losses and gradients."""
    model: Any = make("gemma3")
    SequenceParallel(degree=2, cut="all").apply(model)
    if checkpointing:
        checkpointed(model, checkpointing)
    torch._dynamo.reset()
    model.compile(backend="aot_eager")
    worst = 0.0
    for rows, (loss, grads) in zip(BATCHES, stock_steps(), strict=True):
        model.zero_grad()
        found = model(**batch(rows)).loss
        found.backward()
        worst = max(worst, relative(found, torch.tensor(loss)), *off_gradients(model, grads).values())
    return worst


@pytest.mark.parametrize("checkpointing", ["", "plain"])
def test_a_compiled_model_on_two_ranks(two: Pool, checkpointing: str) -> None:
    assert max(two.run(compiled_steps, checkpointing)) < EXACT
