"""A text copied with a word replaced and some lines left out."""

from __future__ import annotations

import random
import re
from typing import ClassVar

from ..base import LongTask, Problem
from ..vocabulary import WORDS


class EditTask(LongTask):
    """Numbered lines of words, copied under two rules."""

    name: ClassVar[str] = "edit"
    tag: ClassVar[str] = "copy"
    tokens_per_line: ClassVar[float] = 10.5

    def build(self, rng: random.Random, lines: int) -> Problem:
        """A line of the answer is a line that is kept."""
        old, new, gone = rng.sample(WORDS, 3)
        text: list[str] = []
        kept: list[str] = []
        while len(kept) < lines:
            text.append(f"{len(text) + 1}. " + " ".join(rng.choices(WORDS, k=6)))
            if not text[-1].endswith(f" {gone}"):
                kept.append(re.sub(rf"\b{old}\b", new, text[-1]))
        ask = f"Copy the lines. Write '{new}' for '{old}'. Leave out the lines that end with '{gone}'."
        return self.problem("\n".join(text), ask, kept)


LONG_TASKS = {"edit": EditTask()}
