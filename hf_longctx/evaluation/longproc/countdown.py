"""LongProc's countdown: the search in its format, and the scores of a solution and of a search."""

from __future__ import annotations

import itertools
import re
from collections.abc import Sequence

from ..tasks.long_output.search import result, take
from .route import inside

HEAD = "# Search Procedure"
EXAMPLES = (((40, 19, 23, 7), 29), ((9, 16, 6, 18), 12))  # that its prompt shows
LARGEST = 2000
_STEP = re.compile(r"\s*(\d{1,9})\s*([-+*/])\s*(\d{1,9})\s*=\s*(-?\d{1,9})\s*", re.ASCII)
_END = (
    "Now we have found the target, let's trace back the solution:\nFinal step: {2}\nThe step before: {1}\n"
    "The first step: {0}\n\nOutput the solution in the required format:\n<Solution>\n{0}\n{1}\n{2}\n</Solution>\n"
)


def search(numbers: Sequence[int], target: int) -> tuple[list[str], list[str]]:
    """The lines of the depth-first search, and its steps.

    Raises:
        ValueError: The search does not reach the target.
    """
    lines = [f"Initial number set: {list(numbers)}, target: {target}. {_options(numbers)}"]
    steps = _visit(list(numbers), target, 1, lines)
    if steps is None:
        raise ValueError(f"numbers {list(numbers)}, target {target}: the search does not reach it.")
    return lines, steps


def examples() -> str:
    """The examples of the prompt."""
    some = []
    for numbers, target in EXAMPLES:
        lines, steps = search(numbers, target)
        trace = "\n".join(lines)
        shown = f"# Example\nNumbers: {list(numbers)}\nTarget: {target}\n\n{HEAD}\n{trace}\n\n{_END.format(*steps)}"
        some.append(shown)
    return "\n\n".join(some)


def solved(prediction: str, numbers: Sequence[int], target: int) -> float:
    """1 if three equations between "Solution" tags use every number once and reach the target.

    They are read by a regular expression, where the official code evaluates what the model wrote.
    """
    text, left = inside(prediction, "Solution"), list(numbers)
    lines = [] if text is None else text.split("\n")
    if len(lines) != 3:
        return 0.0
    for line in lines:
        step = _STEP.fullmatch(line)
        if step is None:
            return 0.0
        a, b, value = int(step[1]), int(step[3]), int(step[4])
        if not take(left, a, b, value) or result(a, step[2], b) != value:
            return 0.0
    return float(left[0] == target)


def searched(prediction: str, numbers: Sequence[int], target: int) -> float:
    """1 for a solution; else the share of the search before the first wrong choice, 0 if it is not headed.

    As published, a search without a mistake that is not finished lacks one line's share. Where that rule gives less
    than 0, this gives 0.
    """
    if solved(prediction, numbers, target):
        return 1.0
    if HEAD not in prediction:
        return 0.0
    first, *expected = search(numbers, target)[0]
    head, *written = prediction.split(HEAD)[-1].strip().split("\n")
    if head != first:
        return 0.0
    at = -1
    for at, (line, want) in enumerate(zip(written, expected, strict=False)):  # noqa: B007  # the last one counts
        if line != want and ("Pick two numbers" in want or not _same_choice(line, want)):
            break
    return max(at, 0) / len(expected)


def _same_choice(line: str, want: str) -> bool:
    """Whether a try is of the same numbers and is dropped or kept alike."""
    dropped = "drop this branch"
    return line.split("=")[0] == want.split("=")[0] and (dropped in line) == (dropped in want)


def _options(numbers: Sequence[int]) -> str:
    return f"Options for choosing two numbers: {list(itertools.combinations(numbers, 2))}."


def _visit(numbers: list[int], target: int, depth: int, lines: list[str]) -> list[str] | None:
    """Search on from numbers; lines of pairs are at `depth`, tries one deeper. The steps, or None."""
    last = len(numbers) == 2  # without a line for the only pair
    for i, j in itertools.combinations(range(len(numbers)), 2):
        rest = [number for k, number in enumerate(numbers) if k not in (i, j)]
        pair = numbers[i], numbers[j]
        if not last:
            lines.append(_line(depth, f"Pick two numbers {pair} (numbers left: {rest}). Try possible operations."))
        a, b = max(pair), min(pair)
        for sign in "+-*/":
            steps = _try(a, sign, b, rest, target, depth if last else depth + 1, lines)
            if steps is not None:
                return steps
    return None


def _try(a: int, sign: str, b: int, rest: list[int], target: int, depth: int, lines: list[str]) -> list[str] | None:
    value = (a / b if b else None) if sign == "/" else result(a, sign, b)
    if value is None:
        lines.append(_line(depth, f"Try {a} / {b} (invalid operation). drop this branch."))
        return None
    if value != int(value):
        lines.append(_line(depth, f"Try {a} / {b} = {value:.1f}. {value:.1f} is a decimal, drop this branch."))
        return None
    found = int(value)
    step = f"{a} {sign} {b} = {found}"
    if found >= LARGEST:
        why = f"{found} exceeds the maximum intermediate result, drop this branch."
        lines.append(_line(depth, f"Try {step}. {why}"))
        return None
    if not rest:
        hit = found == target
        end = f"== {target}, target found!" if hit else f"!= {target}, drop this branch."
        lines.append(_line(depth, f"Try {step}. Evaluate {found} {end}"))
        return [step] if hit else None
    left = [found, *rest]
    more = f"target: {target}, just two numbers left." if len(left) == 2 else f"target: {target}. {_options(left)}"
    lines.append(_line(depth, f"Try {step}. Add {found} to the number set. Current number set: {left}, {more}"))
    steps = _visit(left, target, depth + 1, lines)
    return None if steps is None else [step, *steps]


def _line(depth: int, text: str) -> str:
    return f"{' ' * depth}|- {text}"
