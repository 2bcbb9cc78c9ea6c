"""Two models on the same prompts: the mean difference of a score, with an interval by paired bootstrap over prompts."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

DRAWS = 10_000


def paired(ours: Sequence[float], theirs: Sequence[float], *, seed: int = 0, draws: int = DRAWS) -> dict[str, float]:
    """Mean of ours minus theirs, and the 95 % interval of it; prompts are drawn with replacement, the same for both.

    Raises:
        ValueError: They are not of the same prompts, or there are none.
    """
    if len(ours) != len(theirs) or not len(ours):
        raise ValueError(
            f"{len(ours)} and {len(theirs)} values: expected those of the same prompts, at least one. Score both "
            f"models with the same settings."
        )
    differences = np.subtract(ours, theirs)
    chosen = np.random.default_rng(seed).integers(len(differences), size=(draws, len(differences)))
    low, high = np.quantile(differences[chosen].mean(1), [0.025, 0.975])
    return {
        "difference": float(differences.mean()),
        "low": float(low),
        "high": float(high),
        "prompts": len(differences),
    }


def values(scores: dict[str, Any], what: str, name: str, **of: Any) -> list[float]:
    """A score of every prompt, of the cells of tasks or of writing that are `of` a size, a task, a form."""
    cells = [cell for cell in scores[what] if all(cell.get(key) == value for key, value in of.items())]
    return [value for cell in cells for value in cell[name]]


def gains(ours: dict[str, Any], theirs: dict[str, Any]) -> dict[str, dict[str, float]]:
    """What a training gained, on the prompts that both models were given."""
    found = {}
    for what, name in (
        ("tasks", "exact"),
        ("tasks", "share"),
        ("tasks", "ended"),
        ("writing", "ended_length"),
        ("writing", "ended"),
        ("writing", "repeated"),
    ):
        both = [cell for cell in ours[what] if any(_same(cell, other) for other in theirs[what])]
        own = [value for cell in both for value in cell[name]]
        other = [value for cell in both for mate in theirs[what] if _same(cell, mate) for value in mate[name]]
        if own and len(own) == len(other):
            found[f"{what}: {name}"] = paired(own, other)
    return found


def _same(cell: dict[str, Any], other: dict[str, Any]) -> bool:
    return all(cell.get(key) == other.get(key) for key in ("task", "tokens", "asked", "form"))
