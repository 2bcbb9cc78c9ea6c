"""Giraffe: rotary frequencies with the slow ones frozen or bent (Pal et al. 2023, https://arxiv.org/abs/2308.10882)."""

from __future__ import annotations

import dataclasses
import math
from typing import Any, ClassVar

from ..rope.method import RopeMethod
from ..rope.parameters import frequencies

STILL = 1e18  # a divisor that stops a frequency: longrope takes finite divisors only


@dataclasses.dataclass(frozen=True, kw_only=True)
class Giraffe(RopeMethod):
    """Giraffe (Pal et al. 2023): never show the model an angle of a slow frequency that training did not reach.

    "truncated" keeps the frequencies that made at least one full turn within the trained length, gives those a little
    slower one fixed low frequency, and stops the rest; "power" lowers the slow ones more than the fast ones. Static,
    so caches are consistent.

    Use when: you fine-tune on long text afterwards, as the paper does.

    Cannot: help much without training (take `RopeScaling` there), or make reading cheaper.

    Costs: nothing beyond the stock model at run time; the fine-tuning.

    Differs from the authors' code: the base is the model's own rope_theta (theirs is 10000). With d rotated dims and
    theta_j = rope_theta^(-2j/d), the paper's b is 2 pi / train_length, its a is `zero_below` * b, its rho is
    `middle` * b, its k is `exponent`. Saved as plain `rope_parameters` (longrope with equal short and long factors):
    the model loads without hf_longctx.

    Args:
        basis: "truncated" (theta_j >= b: kept; a <= theta_j < b: rho; below a: 0) or "power" (theta_j (1 - 2j/d)^k).
        train_length: The length the model was trained on. None: `config.max_position_embeddings`.
        zero_below: Truncated: a / b, from 0 to 1. The authors' code has 1/8.
        middle: Truncated: rho / b, from 0 to 1. The authors' code has 1/16, which is below a.
        exponent: Power: k, above 0. The paper uses 0.5.
        scale: Linear scaling on top: every frequency is divided by it, at least 1.
        replace: Put this in the place of a scaling that the model already has (otherwise refused).
    """

    name: ClassVar[str] = "giraffe"
    summary: ClassVar[str] = "low rotary frequencies zeroed (truncated) or reduced (power); meant for fine-tuning"
    paper: ClassVar[str] = "https://arxiv.org/abs/2308.10882"
    training_free: ClassVar[bool] = False

    basis: str = "truncated"
    train_length: int | None = None
    zero_below: float = 1 / 8
    middle: float = 1 / 16
    exponent: float = 0.5
    scale: float = 1.0
    replace: bool = False

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.basis not in ("truncated", "power"):
            raise ValueError(f"basis={self.basis!r}: no such basis. There are: truncated, power.")
        if self.train_length is not None and self.train_length < 1:
            raise ValueError(f"train_length={self.train_length}: expected the tokens the model was trained on.")
        for field in ("zero_below", "middle"):
            value = getattr(self, field)
            if not 0 <= value <= 1:
                raise ValueError(
                    f"{field}={value}: cut-offs in the wrong order. It is a share of b, the lowest frequency kept as "
                    f"it is, so 0 to 1 is expected."
                )
        if not 0 < self.exponent < math.inf:
            raise ValueError(f"exponent={self.exponent}: expected a number above 0. The paper uses 0.5.")
        if not 1 <= self.scale < math.inf:
            raise ValueError(f"scale={self.scale}: expected a number from 1, the length wanted over the trained one.")
        unused = ("exponent",) if self.basis == "truncated" else ("zero_below", "middle")
        for field in unused:
            if getattr(self, field) != getattr(Giraffe, field):
                raise ValueError(f"{field}={getattr(self, field)}: basis={self.basis!r} does not take it.")

    def table(self, base: list[float], train_length: int) -> list[float]:
        """The frequencies in place of `base`, the model's own."""
        if self.basis == "power":
            return [f * (1 - j / len(base)) ** self.exponent / self.scale for j, f in enumerate(base)]
        kept = 2 * math.pi / train_length
        fixed = self.middle * kept
        chosen = [f if f >= kept else fixed if f >= self.zero_below * kept else 0.0 for f in base]
        return [f / self.scale for f in chosen]

    def scaling(self, config: Any, entry: dict[str, Any]) -> dict[str, Any]:
        """A longrope whose short and long factors are equal."""
        trained = self.train_length or entry.get("original_max_position_embeddings") or config.max_position_embeddings
        base = frequencies(config, entry)
        divisors = [f / new if new else STILL for f, new in zip(base, self.table(base, trained), strict=True)]
        return {
            "rope_type": "longrope",
            "factor": 1.0,
            "attention_factor": 1.0,
            "original_max_position_embeddings": trained,
            "short_factor": divisors,
            "long_factor": list(divisors),
        }
