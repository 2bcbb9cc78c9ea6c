"""Questions and their answers in a file, a JSON object a line, where an interrupted run finds its own again."""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from .files import append_line, whole_lines

_KEYS = {"question", "answer", "run"}


class AnswerFile:
    """An answer is on disk before the next batch begins. A last line that was cut off in the middle is dropped.

    Args:
        path: The file; made with the first answer.

    Raises:
        ValueError: It holds something else than answers of runs.
    """

    def __init__(self, path: Path) -> None:
        self.path, self.run = path, ""
        self._lines: list[Any] = []
        self._size = 0
        try:
            if path.is_file():  # not a pipe, which has nothing to find
                self._lines, self._size = whole_lines(path, '{"question": "')
            ours = all(isinstance(line, dict) and line.keys() >= _KEYS for line in self._lines)
        except ValueError:
            ours = False
        if not ours:
            raise ValueError(
                f"--out {path} holds something else than answers that a run can continue (JSON lines with a question, "
                f"an answer and the run that it is of). Choose another --out, or move that file away."
            )

    def of(self, run: str) -> AnswerFile:
        """The file as that of a run, which is told from others by this short text. ValueError if it is another's."""
        if any(line["run"] != run for line in self._lines):
            raise ValueError(
                f"--out {self.path} holds answers of another run: its model, document, method or settings differ. "
                f"Choose another --out, or move that file away."
            )
        if self.path.exists() and self._size < self.path.stat().st_size:
            # Otherwise the next answer would be glued to the half line.
            os.truncate(self.path, self._size)
        self.run = run
        return self

    def missing(self, questions: Sequence[str]) -> list[str]:
        """Those that have no answer yet, in their order; one that is asked twice has two."""
        there = Counter(line["question"] for line in self._lines)
        found = []
        for question in questions:
            there[question] -= 1
            if there[question] < 0:
                found.append(question)
        return found

    def add(self, question: str, answer: str) -> None:
        """Write an answer down."""
        line = {"question": question, "answer": answer, "run": self.run}
        append_line(self.path, line, "answers", escaped=False)
        self._lines.append(line)
