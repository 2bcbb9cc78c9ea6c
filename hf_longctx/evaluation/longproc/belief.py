"""LongProc's theory-of-mind tracking: lines "- Step 3: ...", compared without punctuation and frequent words."""

from __future__ import annotations

import re
import string

_STEP = re.compile(r"- Step \d+:")
_START = "- Step 0:"
_LEFT_OUT = re.compile(
    r"\b(a|an|the|on|in|at|step|thinks|think|believes|believe|is|are|of|location|know|knows|belief)\b"
)
_PUNCTUATION = str.maketrans("", "", f"{string.punctuation}’")


def steps(text: str) -> list[str]:
    """The normalised steps of a text, from the last place where it begins with step 0."""
    marked = "\n".join(line for line in text.splitlines() if line.strip().startswith("-"))
    lines = marked[max(marked.rfind(_START), 0) :].strip().split("\n")
    found = (_plain(line.split("-", 1)[1]) for line in lines if _STEP.match(line))
    return [step for step in found if step]


def all_beliefs(prediction: str, answer: str) -> float:
    """1 if all steps equal the answer's."""
    return float(steps(prediction) == steps(answer))


def first_beliefs(prediction: str, answer: str) -> float:
    """The share of steps before the first that differs; steps too many cost nothing here, as published."""
    written, expected = steps(prediction), steps(answer)
    pairs = list(zip(written, expected, strict=False))
    return next((i for i, (a, b) in enumerate(pairs) if a != b), len(pairs)) / len(expected)


def _plain(text: str) -> str:
    return " ".join(_LEFT_OUT.sub(" ", text.lower().translate(_PUNCTUATION)).split())
