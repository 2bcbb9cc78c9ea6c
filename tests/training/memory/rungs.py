"""The rungs by themselves and together, and what a model gives with and without them."""

from __future__ import annotations

from collections.abc import Callable
from itertools import combinations
from typing import Any

from torch import Tensor

from hf_longctx import TrainingMemory
from tests.parallel.models import relative

EXACT = 1e-5
TILE = 7
OFF: dict[str, Any] = {"chunked_loss": False, "tile": None, "remat": None, "fused_norms": False}
ON: dict[str, Any] = {"chunked_loss": True, "tile": TILE, "remat": "attention", "fused_norms": True}
# each rung, each pair, and all
LADDERS = {
    "+".join(some): TrainingMemory(**{**OFF, **{name: ON[name] for name in some}})
    for n in (1, 2, 4)
    for some in combinations(ON, n)
}
ALL = LADDERS["+".join(ON)]


def small_chunks(setattr: Callable[..., None]) -> None:
    """Logits of five tokens at a time."""
    setattr("hf_longctx.training.memory.pending.CHUNK", 5)


def step(model: Any, given: dict[str, Any], **more: Any) -> tuple[float, dict[str, Tensor]]:
    """The loss, and every gradient."""
    model.zero_grad()
    out = model(**given, use_cache=False, **more)
    out.loss.backward()
    return float(out.loss.detach()), {
        name: p.grad.clone() for name, p in model.named_parameters() if p.grad is not None
    }


def off(found: tuple[float, dict[str, Tensor]], right: tuple[float, dict[str, Tensor]]) -> dict[str, float]:
    """Relative errors of the loss and of every gradient, but for gradients that are rounding alone."""
    assert found[1].keys() == right[1].keys()
    largest = max(float(x.norm()) for x in right[1].values())
    errors = {
        name: relative(x, right[1][name]) for name, x in found[1].items() if right[1][name].norm() > 1e-7 * largest
    }
    return errors | {"loss": abs(found[0] - right[0]) / abs(right[0])}
