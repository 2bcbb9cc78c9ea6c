"""Lines sorted by number."""

from __future__ import annotations

import random
from typing import ClassVar

from ..base import LongTask, Problem
from ..vocabulary import WORDS


class OrderTask(LongTask):
    """Every line needs the smallest number of those that are left."""

    name: ClassVar[str] = "order"
    tag: ClassVar[str] = "sorted"
    tokens_per_line: ClassVar[float] = 6.3

    def build(self, rng: random.Random, lines: int) -> Problem:
        """A line of the answer is a number and its word."""
        numbers = rng.sample(range(1000, 1000 + max(9000, 8 * lines)), lines)
        rows = {number: f"{number} {rng.choice(WORDS)}" for number in numbers}
        ask = "Write the lines sorted by their numbers, the smallest first."
        return self.problem("\n".join(rows.values()), ask, [rows[number] for number in sorted(rows)])


LONG_TASKS = {"order": OrderTask()}
