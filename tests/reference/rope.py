"""Scaled rotary frequencies as published, one formula a function: rope_parameters in, numbers out.

Nothing of transformers or hf_longctx is called, so that a model under brute force owes its frequencies to neither.
"""

# C = d / 2 rotary pairs of the d dims that are rotated
from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from tests.reference.lm_infinite import inverse_frequencies

Rope = dict[str, Any]


def linear(rope: Rope, theta_C: Tensor) -> Tensor:
    """Chen et al. 2023 (2306.15595): position m is read as m / s."""
    return theta_C / rope["factor"]


def yarn(rope: Rope, theta_C: Tensor) -> Tensor:
    """Peng et al. 2023 (2309.00071), section 3.2: by how many turns r a dim makes within the trained length L.

    The published code finds the dims at which r is beta_fast and beta_slow, rounds them outwards, and ramps between.
    """
    L, s, d = rope["original_max_position_embeddings"], rope["factor"], 2 * len(theta_C)

    def dim_with(turns: float) -> float:
        return d * math.log(L / (turns * 2 * math.pi)) / (2 * math.log(rope["rope_theta"]))

    low = max(math.floor(dim_with(rope.get("beta_fast") or 32)), 0)
    high = min(math.ceil(dim_with(rope.get("beta_slow") or 1)), d - 1)
    high += 0.001 if low == high else 0
    j = torch.arange(len(theta_C), dtype=torch.float64)
    divided = ((j - low) / (high - low)).clamp(0, 1)
    return theta_C * (1 - divided) + theta_C / s * divided


def llama3(rope: Rope, theta_C: Tensor) -> Tensor:
    """Llama 3.1: wavelengths above L / low are divided by s, those below L / high kept, the others in between."""
    L, s = rope["original_max_position_embeddings"], rope["factor"]
    low, high = rope["low_freq_factor"], rope["high_freq_factor"]
    scaled = []
    for theta in theta_C.tolist():
        turns = L * theta / (2 * math.pi)
        smooth = min(max((turns - low) / (high - low), 0.0), 1.0)
        scaled.append((1 - smooth) * theta / s + smooth * theta)
    return torch.tensor(scaled, dtype=torch.float64)


def longrope(rope: Rope, theta_C: Tensor) -> Tensor:
    """Ding et al. 2024 (2402.13753): a divisor for every dim. One table: which of two is read is not decided here."""
    assert rope["short_factor"] == rope["long_factor"]
    return theta_C / torch.tensor(rope["long_factor"], dtype=torch.float64)


FORMULAS: dict[str, Callable[[Rope, Tensor], Tensor]] = {
    "default": lambda rope, theta_C: theta_C,
    "linear": linear,
    "yarn": yarn,
    "llama3": llama3,
    "longrope": longrope,
}


def attention_factor(rope: Rope) -> float:
    """What queries and keys are each multiplied by."""
    kind, s = rope["rope_type"], rope.get("factor", 1.0)
    if rope.get("attention_factor") is not None:
        return float(rope["attention_factor"])
    if s <= 1 or kind not in ("yarn", "longrope"):
        return 1.0
    if kind == "yarn":
        return 0.1 * math.log(s) + 1
    return math.sqrt(1 + math.log(s) / math.log(rope["original_max_position_embeddings"]))


def scaled(rope: Rope, head_dim: int) -> tuple[Tensor, float]:
    """The frequencies of one kind of layer, and the factor of its queries and keys."""
    d = int(head_dim * rope.get("partial_rotary_factor", 1.0))
    theta_C = inverse_frequencies(rope["rope_theta"], d)
    return FORMULAS[rope["rope_type"]](rope, theta_C), attention_factor(rope)
