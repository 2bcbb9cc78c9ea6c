"""Multiple choice: LongBench v2's letter, and L-Eval's letters."""

from __future__ import annotations

import re
from collections.abc import Sequence

_V2 = (re.compile(r"The correct answer is \(([A-D])\)"), re.compile(r"The correct answer is ([A-D])"))
_ALONE = re.compile(r"(?<![A-Za-z])[A-D](?![A-Za-z])")
_RUN = re.compile(r"[^A-Za-z]*([A-D]{2,4})(?![A-Za-z])")


def letter(prediction: str) -> str | None:
    """The letter in "The correct answer is (B)", with or without parentheses and asterisks (LongBench v2)."""
    plain = prediction.replace("*", "")
    found = next((match for pattern in _V2 if (match := pattern.search(plain))), None)
    return None if found is None else found.group(1)


def choice(prediction: str, answers: Sequence[str]) -> float:
    """1 if the letter is the answer; 0 also where there is none."""
    return float(letter(prediction) in answers)


def choice_compensated(prediction: str, answers: Sequence[str]) -> float:
    """The same, but a quarter, the chance of a guess, where there is no letter ("compensated" in LongBench v2)."""
    return 0.25 if letter(prediction) is None else choice(prediction, answers)


def letters(prediction: str) -> str:
    """The letters A to D that stand alone in the first line that has some, sorted; "AC" together counts as two."""
    for line in prediction.strip().split("\n"):
        run = _RUN.match(line)
        found = set(run.group(1)) if run else set(_ALONE.findall(line))
        if found:
            return "".join(sorted(found))
    return ""


def letters_partial(prediction: str, answers: Sequence[str]) -> float:
    """1 for exactly the right letters; a quarter for some of several and no wrong one (L-Eval's coursera)."""
    given = set(letters(prediction))
    best = 0.0
    for answer in answers:
        right = set(answer.strip())
        best = max(best, 1.0 if given == right else 0.25 if given and given < right else 0.0)
    return best


def letters_exact(prediction: str, answers: Sequence[str]) -> float:
    """1 for exactly the right letters (L-Eval's other multiple-choice tasks)."""
    return float(letters(prediction) in {"".join(sorted(answer.strip())) for answer in answers})
