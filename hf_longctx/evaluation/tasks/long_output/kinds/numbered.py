"""Numbered sentences, each with a given word: any wording is right."""

from __future__ import annotations

import random
from typing import ClassVar

from ..base import Judge, LongTask, Problem
from ..sentences import FEWEST, distinct, fits, without
from ..vocabulary import WORDS


class NumberedTask(LongTask):
    """An open task: exactly so many numbered sentences, each with its word."""

    name: ClassVar[str] = "numbered"
    tag: ClassVar[str] = "list"
    tokens_per_line: ClassVar[float] = 14.0

    def build(self, rng: random.Random, lines: int) -> Problem:
        """A line of the answer is a sentence with its number."""
        words = rng.choices(WORDS, k=lines)
        out = [f"{i}. {text}" for i, text in enumerate(distinct(rng, words), 1)]
        ask = (
            f"Write exactly {lines} numbered lines, as '1. ...'. Line k is one sentence of at least {FEWEST} words, "
            "among them the k-th of the words above. No two sentences are alike."
        )
        return self.problem(f"Words: {', '.join(words)}.", ask, out, words=words)

    def judge(self, problem: Problem) -> Judge:
        """A line is right if it has its number and a new sentence with its word."""
        words, seen = problem.facts["words"], set[str]()

        def right(i: int, line: str) -> bool:
            number, _, text = line.strip().partition(". ")
            return number == str(i + 1) and fits(text, words[i], seen)

        return right

    def slip(self, problem: Problem, at: int, rng: random.Random) -> str:
        """The line without its word."""
        return without(problem.lines[at], problem.facts["words"][at], rng)


LONG_TASKS = {"numbered": NumberedTask()}
