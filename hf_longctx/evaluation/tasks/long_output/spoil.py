"""Right answers with one fault of the kinds that models make: the rejected side of DPO pairs."""

from __future__ import annotations

import random

from .base import Problem
from .catalogue import task_of

NEVER_ENDS = "never ends"  # it has no last line; a chat template would write the end token behind it all the same
FAULTS = ("stops early", "skips a line", "loops", "one slip", NEVER_ENDS)
_REPEATS = 8  # of the last line of an answer that never ends


def spoilt(problem: Problem, fault: str | None = None, *, seed: int = 0) -> tuple[str, str]:
    """An answer that is never exact, and its fault, which lies behind the first third of the lines.

    Args:
        problem: Whose right answer is spoilt.
        fault: One of `FAULTS`; None draws one.
        seed: Decides the fault and its place.

    Raises:
        ValueError: There is no such fault.
    """
    rng = random.Random(f"{problem.prompt}/{seed}")
    fault = rng.choice(FAULTS) if fault is None else fault
    if fault not in FAULTS:
        raise ValueError(f"fault={fault!r}: expected one of {', '.join(FAULTS)}.")
    opened, *lines, closed = problem.answer.split("\n")
    at = rng.randint(len(lines) // 3, len(lines) - 1)
    before, line, after = lines[:at], lines[at], lines[at + 1 :]
    changed = {
        "stops early": lambda: [*before, closed],
        "skips a line": lambda: [*before, *after, closed],
        "loops": lambda: [*before, line, *[*before[-2:], line] * 3, *after, closed],
        "one slip": lambda: [*before, task_of(problem.task).slip(problem, at, rng), *after, closed],
        NEVER_ENDS: lambda: [*before, *[line] * (_REPEATS + 1)],
    }[fault]()
    return "\n".join([opened, *changed]), fault
