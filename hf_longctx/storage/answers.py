"""Questions and their answers in a file of JSON lines, in which an interrupted run finds its own."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from .files import append_line, drop_half_line, whole_lines

_KEYS = {"question", "answer", "run"}


class AnswerFile:
    """An answer is on disk before the next batch begins. A last line that was cut off in the middle is dropped.

    Args:
        path: The file; created with the first answer.

    Raises:
        ValueError: It holds anything but answers of runs.
    """

    def __init__(self, path: Path) -> None:
        self.path, self.run = path, ""
        self._lines: list[Any] = []
        self._size = 0
        try:
            if path.is_file():  # a pipe cannot be read back
                self._lines, self._size = whole_lines(path, '{"question": "')
            intact = all(isinstance(line, dict) and line.keys() >= _KEYS for line in self._lines)
        except ValueError:
            intact = False
        if not intact:
            raise ValueError(
                f"--out {path} holds something else than answers that a run can continue (JSON lines with question, "
                f"answer and run). Choose another --out, or move that file away."
            )

    def of(self, run: str) -> AnswerFile:
        """The file as that of a run, named by this short text. ValueError if it belongs to another."""
        if any(line["run"] != run for line in self._lines):
            raise ValueError(
                f"--out {self.path} holds answers of another run: its model, document, method or settings differ. "
                f"Choose another --out, or move that file away."
            )
        drop_half_line(self.path, self._size)
        self.run = run
        return self

    def missing(self, questions: Sequence[str]) -> list[str]:
        """The questions without an answer, in their order; one that is asked twice needs two."""
        answered = Counter(line["question"] for line in self._lines)
        found = []
        for question in questions:
            answered[question] -= 1
            if answered[question] < 0:
                found.append(question)
        return found

    def add(self, question: str, answer: str) -> None:
        """Append an answer."""
        line = {"question": question, "answer": answer, "run": self.run}
        append_line(self.path, line, "answers", escaped=False)
        self._lines.append(line)
