"""LongBench v2 (Bai et al. 2024, https://arxiv.org/abs/2412.15204): multiple choice over one long text.

The official zero-shot prompt and answer length; decoding is greedy instead of at temperature 0.1. Scores by difficulty
and length are in the results' `groups`.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from pathlib import Path

from ..records import records
from ..sample import Sample
from ..scoring import Metric, every
from .leval import LETTERED, right_letters

KEYS = ("_id", "context", "question", "choice_A", "choice_B", "choice_C", "choice_D", "answer")
BEFORE = "Please read the following text and answer the question below.\n\n<text>\n"
AFTER = (
    "\n</text>\n\nWhat is the correct answer to this question: {question}\nChoices:\n(A) {A}\n(B) {B}\n(C) {C}\n(D) {D}"
    '\n\nFormat your response as follows: "The correct answer is (insert answer here)".'
)
COMMON = {"task": "longbench2", "instruction": BEFORE, "max_new_tokens": 128, "metric": "choice"}
_TOLD = (re.compile(r"The correct answer is \(([A-D])\)"), re.compile(r"The correct answer is ([A-D])"))


def read(path: str | Path) -> Iterator[Sample]:
    """Samples of `data.json` or JSON lines; ValueError names the line and key of what is wrong."""
    for record in records(path, KEYS):
        choices = {letter: record.text(f"choice_{letter}").strip() for letter in "ABCD"}
        if (answer := record.text("answer").strip()) not in choices:
            raise record.wrong(f"the key 'answer' is {answer!r:.60}; expected A, B, C or D.")
        groups = [str(record.get(key)) for key in ("difficulty", "length") if record.get(key)]
        question = AFTER.format(question=record.text("question").strip(), **choices)
        prompt = {"context": record.text("context").strip(), "question": question, "answers": (answer,)}
        meta = {"groups": groups, "domain": record.get("domain")}
        yield record.sample(id=record.text("_id"), meta=meta, **prompt, **COMMON)


def letter(prediction: str) -> str | None:
    """The letter in "The correct answer is (B)", with or without parentheses and asterisks."""
    plain = prediction.replace("*", "")
    found = next((match for pattern in _TOLD if (match := pattern.search(plain))), None)
    return None if found is None else found.group(1)


def choice(prediction: str, answers: Sequence[str]) -> float:
    """1 if the letter is the answer; 0 also where there is none."""
    return float(letter(prediction) in [right_letters(answer) for answer in answers])


def choice_compensated(prediction: str, answers: Sequence[str]) -> float:
    """The same, but a quarter, the chance of a guess, where there is no letter ("compensated" in the paper)."""
    return 0.25 if letter(prediction) is None else choice(prediction, answers)


METRICS = {
    "choice": Metric(every(choice), shape=LETTERED),
    "choice_compensated": Metric(every(choice_compensated), shape=LETTERED),
}
