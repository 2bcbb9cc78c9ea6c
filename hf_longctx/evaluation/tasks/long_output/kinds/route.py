"""A journey: the only way on from each place, looked up place by place."""

from __future__ import annotations

import itertools
import random
from typing import ClassVar

from ..base import LongTask, Problem
from ..vocabulary import places

_BY = ("bus", "train", "ferry", "plane")


class RouteTask(LongTask):
    """Every step of a journey through shuffled connections, a third of which lead elsewhere."""

    name: ClassVar[str] = "route"
    tag: ClassVar[str] = "route"
    tokens_per_line: ClassVar[float] = 10.5

    def build(self, rng: random.Random, lines: int) -> Problem:
        """A line of the answer is a step."""
        names = places(rng, lines + 1 + lines // 2)
        chain, others = names[: lines + 1], names[lines + 1 :]
        steps = [(a, rng.choice(_BY), b) for a, b in itertools.pairwise(chain)]
        # the others lead into the journey: no place has a way to itself
        ways = steps + [(a, rng.choice(_BY), rng.choice(chain)) for a in others]
        rng.shuffle(ways)
        told = "\n".join(f"From {a} the only way on is a {by} to {b}." for a, by, b in ways)
        ask = f"Write every step of the journey from {chain[0]} to {chain[-1]}, one a line as 'A > bus > B'."
        return self.problem(told, ask, [f"{a} > {by} > {b}" for a, by, b in steps])


LONG_TASKS = {"route": RouteTask()}
