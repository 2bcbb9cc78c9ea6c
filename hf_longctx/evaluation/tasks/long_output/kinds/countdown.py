"""Countdown: the whole search for a way from some numbers to a goal, and the steps that it found."""

from __future__ import annotations

import random
import re
from typing import ClassVar

from ..base import Judge, LongTask, Problem
from ..search import LARGEST, Leaf, result, take, walk

_STEP = re.compile(r"(\d{1,6})([-+*/])(\d{1,6})=(\d{1,9})", re.ASCII)
_FOUR = 300  # lines of a search up to which four numbers give enough of them


class CountdownTask(LongTask):
    """A depth-first search written down line by line; the steps at its end may be any that reach the goal."""

    name: ClassVar[str] = "countdown"
    tag: ClassVar[str] = "search"
    tokens_per_line: ClassVar[float] = 14.0
    overhead: ClassVar[int] = 30  # the steps at the end

    def build(self, rng: random.Random, lines: int) -> Problem:
        """The goal is a value that the search reaches for the first time after about `lines` lines."""
        amount, nearest, trace = (4 if lines <= _FOUR else 5), None, list[str]()
        while nearest is None or abs(nearest.lines - lines) > max(1, lines // 5):
            numbers = sorted(rng.sample(range(2, 60), amount), reverse=True)
            trace, first = [], dict[int, Leaf]()
            for leaf in walk(numbers, trace, lines + lines // 5 + 1):
                first.setdefault(leaf.value, leaf)
            nearest = min((leaf for leaf in first.values() if leaf.value >= 10), key=lambda x: abs(x.lines - lines))
        lasts = ">" * (amount - 1) + " "
        out = [f"{line} no" if line.startswith(lasts) else line for line in trace[: nearest.lines]]
        out[-1] = f"{trace[nearest.lines - 1]} yes"
        ask = (
            "Use each number once, with + - * /, to reach the goal. Search depth first: with the numbers from the "
            "largest to the smallest, take two at a time, the first with each after it, then the second, and try "
            f"+ - * / in this order; drop results that are not whole numbers from 1 to {LARGEST}. Write a line for "
            "each try: as many '>' as results so far, the try, and the numbers that are left, as "
            f"'> 9+4=13 left 13 7 2'; the last try of each branch as '{lasts}20+5=25 no', or 'yes' at the goal, where "
            "the search ends. Then write a line 'Steps:' and the steps that reach the goal, one a line."
        )
        given = f"Numbers: {' '.join(map(str, numbers))}. Goal: {nearest.value}."
        return self.problem(
            given, ask, [*out, "Steps:", *nearest.steps], numbers=numbers, goal=nearest.value, search=len(out) + 1
        )

    def judge(self, problem: Problem) -> Judge:
        """Lines of the search are as they have to be; a step is parsed, and uses numbers that are left."""
        expected, left = problem.lines, list(problem.facts["numbers"])

        def right(i: int, line: str) -> bool:
            if i < problem.facts["search"]:
                return line.rstrip() == expected[i]
            match = _STEP.fullmatch(line.strip())
            if match is None:
                return False
            a, b, value = int(match[1]), int(match[3]), int(match[4])
            if not take(left, a, b, value) or result(a, match[2], b) != value:
                return False
            return i < len(expected) - 1 or left == [problem.facts["goal"]]

        return right


LONG_TASKS = {"countdown": CountdownTask()}
