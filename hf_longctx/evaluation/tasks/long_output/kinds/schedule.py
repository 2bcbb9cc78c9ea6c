"""A plan of stays that follow each other."""

from __future__ import annotations

import random
from typing import ClassVar

from ..base import LongTask, Problem
from ..vocabulary import places


class ScheduleTask(LongTask):
    """First and last day of every stay: each line needs the line before it."""

    name: ClassVar[str] = "schedule"
    tag: ClassVar[str] = "plan"
    tokens_per_line: ClassVar[float] = 14.4

    def build(self, rng: random.Random, lines: int) -> Problem:
        """A line of the answer is a stay."""
        told, plan, day = [], [], 1
        for place in places(rng, lines):
            days = rng.randint(2, 9)
            told.append(f"{place}: {days} days")
            plan.append(f"Days {day}-{day + days - 1}: {place}")
            day += days
        ask = "The stays follow each other from day 1. Write the plan, one stay a line as 'Days 1-3: Place'."
        return self.problem("\n".join(told), ask, plan)


LONG_TASKS = {"schedule": ScheduleTask()}
