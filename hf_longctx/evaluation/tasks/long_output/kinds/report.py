"""A structured report: sections in order, and in each as many points as words are required."""

from __future__ import annotations

import random
from typing import ClassVar

from ..base import Judge, LongTask, Problem
from ..sentences import FEWEST, distinct, fits, without
from ..vocabulary import WORDS, places

_ABOUT = ("Water", "Roads", "Schools", "Markets", "Forests", "Bridges", "Music", "Trade")


class ReportTask(LongTask):
    """An open task: the headings are given, each point is a sentence with a required word."""

    name: ClassVar[str] = "report"
    tag: ClassVar[str] = "report"
    tokens_per_line: ClassVar[float] = 11.8

    def build(self, rng: random.Random, lines: int) -> Problem:
        """A line of the answer is the title, a section's heading, or a point."""
        title = f"# Report on {places(rng, 1)[0]}"
        rows = [(title, "")]  # a heading and "", or a point's mark and its word
        told: list[str] = []
        while len(rows) < lines:
            words = rng.choices(WORDS, k=min(rng.randint(2, 5), max(1, lines - len(rows) - 1)))
            heading = f"{len(told) + 1}. {rng.choice(_ABOUT)} of {places(rng, 1)[0]}"
            told.append(f"{heading}: {', '.join(words)}")
            rows += [(f"## {heading}", ""), *(("- ", word) for word in words)]
        texts = iter(distinct(rng, [word for _, word in rows if word]))
        out = [head + next(texts) if word else head for head, word in rows]
        ask = (
            f"Write a report. Its first line is '{title}'. Then follow the {len(told)} sections above: a line '## ' "
            "with the section's number and name, and for each of its words, in order, a line '- ' with one sentence "
            f"of at least {FEWEST} words that has the word. No two sentences are alike, and there are no blank lines."
        )
        return self.problem("\n".join(told), ask, out, rows=[list(row) for row in rows])

    def judge(self, problem: Problem) -> Judge:
        """A heading has to be as given; a point is right if it is a new sentence with its word."""
        rows, seen = problem.facts["rows"], set[str]()

        def right(i: int, line: str) -> bool:
            head, word = rows[i]
            text = line.rstrip()
            return text.startswith(head) and fits(text[len(head) :], word, seen) if word else text == head

        return right

    def slip(self, problem: Problem, at: int, rng: random.Random) -> str:
        """A point without its word, a heading with another name."""
        word = problem.facts["rows"][at][1]
        return without(problem.lines[at], word, rng) if word else super().slip(problem, at, rng)


LONG_TASKS = {"report": ReportTask()}
