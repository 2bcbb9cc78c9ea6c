"""Says of any text how far it is right. Nothing that a model wrote is executed or evaluated."""

from __future__ import annotations

from .base import Problem, Verdict
from .catalogue import task_of

AFTER = 3  # lines that may follow the frame, such as a closing sentence; more of them count as lines too many


def verify(problem: Problem, text: str) -> Verdict:
    """The verdict on a text as the answer to a problem.

    What stands before the frame is free. A text without the frame's first line is looked at from its beginning. A
    single frame is expected: a second one is lines too many.

    Raises:
        ValueError: There is no task of the problem's name.
    """
    task, expected = task_of(problem.task), len(problem.lines)
    lines, frame, after = framed(text, task.tag)
    extra = after if after > AFTER else 0
    judge, right = task.judge(problem), 0
    for i, line in enumerate(lines[:expected]):
        if not judge(i, line):
            break
        right += 1
    written = len(lines) + extra
    return Verdict(frame and right == expected == written, right / max(expected, written, 1), frame)


def framed(text: str, tag: str) -> tuple[list[str], bool, int]:
    """The lines in the first frame, whether it is opened and closed, and the number of lines with text after it."""
    lines = text.split("\n")
    marks = [line.strip() for line in lines]
    opened = f"<{tag}>" in marks
    start = marks.index(f"<{tag}>") + 1 if opened else 0
    try:
        end = marks.index(f"</{tag}>", start)
    except ValueError:
        return lines[start:], False, 0
    return lines[start:end], opened, sum(map(bool, marks[end + 1 :]))
