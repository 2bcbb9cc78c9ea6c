"""How far a model really reads, from its scores by length."""

from __future__ import annotations

from collections.abc import Mapping

RULER_BAR = 85.6  # Llama-2-7B's average at 4k (Hsieh et al. 2024, section 4)
SHARE = 0.85  # of the model's own score in its window (NoLiMa, Modarressi et al. 2025, section 4)


def effective_length(scores: Mapping[int, float], bar: float) -> int | None:
    """The longest length up to which every score reaches `bar`; None where the shortest does not."""
    found = None
    for length in sorted(scores):
        if scores[length] < bar:
            break
        found = length
    return found


def own_score(scores: Mapping[int, float], window: int) -> tuple[int, float] | None:
    """The length and score that a model is compared with: the longest measured length inside its window."""
    inside = [length for length in scores if length <= window]
    return (max(inside), scores[max(inside)]) if inside else None


def weighted_averages(scores: Mapping[int, float]) -> tuple[float, float]:
    """RULER's wAvg: weights 1, 2, 3 ... over the lengths, rising and falling."""
    values = [scores[length] for length in sorted(scores)]
    weights = range(1, len(values) + 1)
    total = sum(weights)
    rising = sum(w * v for w, v in zip(weights, values, strict=True)) / total
    falling = sum(w * v for w, v in zip(reversed(weights), values, strict=True)) / total
    return rising, falling
