"""`degree="auto"`: whatever the groups of a step, loss, logits and gradients are those of one process."""

from __future__ import annotations

from unittest import mock

import pytest
import torch.distributed as dist

from hf_longctx import SequenceParallel
from hf_longctx.parallel.flexible import plan

from .models import PACKED, batch, checkpointed, make, off_gradients, relative, stock
from .pool import Pool

EXACT = 1e-5


def steps(kind: str, cut: str | int, checkpointing: str = "") -> dict[str, float]:
    """A pack in groups of every shape, one after the other on the same model."""
    off = {}
    loss, logits, grads = stock("gemma3", "packed odd")
    model = make("gemma3")
    if checkpointing:
        checkpointed(model, checkpointing)
    switch = SequenceParallel(degree="auto", kind=kind, cut=cut, gather_logits=True)
    with switch.on(model):
        for shape in plan.shapes_of(dist.get_world_size()):
            with mock.patch.object(plan, "shapes_of", lambda ranks, sizes, shape=shape: [shape]):
                model.zero_grad()
                out = model(**batch([PACKED]))
                out.loss.backward()
            name = "+".join(map(str, shape))
            off[f"{name} loss"] = abs(out.loss.item() / loss - 1)
            off[f"{name} logits"] = relative(out.logits.detach(), logits)
            off[f"{name} gradients"] = max(off_gradients(model, grads).values())
    return off


@pytest.mark.parametrize("kind", ["auto", "ring", "gather", "ulysses"])
def test_two(two: Pool, kind: str) -> None:
    for off in two.run(steps, kind, "balance"):
        assert max(off.values()) < EXACT, off
        assert len(off) == 6


@pytest.mark.parametrize("kind", ["auto", "ring", "ulysses", "hybrid"])
def test_four(four: Pool, kind: str) -> None:
    for off in four.run(steps, kind, "all", "plain"):
        assert max(off.values()) < EXACT, off
        assert len(off) == 12
