"""Which parts of a model a rung of the ladder has changed, and why the others stay as they are."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass, field

from torch import nn


@dataclass(eq=False)
class Tally:
    """Counts while a rung goes through a model's modules."""

    changed: int = 0
    refused: Counter[str] = field(default_factory=Counter)

    def reasons(self, decoder: nn.Module, none: str, empty: str, off: str) -> str:
        """Why some were not changed, each with how often; "" if all were.

        Args:
            decoder: The model, which errors name.
            none: Said where none was changed.
            empty: Said where there was none to change.
            off: The setting of TrainingMemory that leaves the rung out.

        Raises:
            ValueError: None was changed.
        """
        reasons = "; ".join(f"{times} x {reason}" for reason, times in self.refused.items())
        if not self.changed:
            raise ValueError(f"{type(decoder).__name__}: {none} ({reasons or empty}). Set TrainingMemory({off}).")
        return reasons
