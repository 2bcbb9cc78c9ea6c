"""LongBench v2 (Bai et al. 2024, https://arxiv.org/abs/2412.15204): multiple choice over one long text.

The official zero-shot prompt and answer length; decoding is greedy instead of at temperature 0.1. Scores by difficulty
and length are in the results' `groups`.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

from ..tasks.sample import Sample
from .files import records

KEYS = ("_id", "context", "question", "choice_A", "choice_B", "choice_C", "choice_D", "answer")
BEFORE = "Please read the following text and answer the question below.\n\n<text>\n"
AFTER = (
    "\n</text>\n\nWhat is the correct answer to this question: {question}\nChoices:\n(A) {A}\n(B) {B}\n(C) {C}\n(D) {D}"
    '\n\nFormat your response as follows: "The correct answer is (insert answer here)".'
)


def read(path: str | Path) -> Iterator[Sample]:
    """Samples of `data.json` or JSON lines; ValueError names the line and key of what is wrong."""
    for record in records(path, KEYS):
        choices = {letter: record.text(f"choice_{letter}").strip() for letter in "ABCD"}
        if (answer := record.text("answer").strip()) not in choices:
            raise record.wrong(f"the key 'answer' is {answer!r:.60}; expected A, B, C or D.")
        groups = [str(record.get(key)) for key in ("difficulty", "length") if record.get(key)]
        yield record.checked(Sample(
            id=record.text("_id"), task="longbench2", instruction=BEFORE, context=record.text("context").strip(),
            question=AFTER.format(question=record.text("question").strip(), **choices),
            answers=(answer,), max_new_tokens=128, metric="choice", cut="middle",
            meta={"groups": groups, "domain": record.get("domain")},
        ))  # fmt: skip
