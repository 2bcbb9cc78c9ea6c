"""RULER's own files (Hsieh et al. 2024): `validation.jsonl` in a folder with the task's name; and its two scores."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path

from ..records import records
from ..sample import Sample
from ..scoring import Metric, every

KEYS = ("input", "outputs")
# tokens of the answer, by how a task's name begins
TOKENS = {"niah": 128, "vt": 30, "variable_tracking": 30, "cwe": 120, "fwe": 50, "qa": 32}
# the last of these in a prompt begins its question
MARKS = (
    "\nWhat is the special magic",
    "\nWhat are all the special magic",
    "\nQuestion:",
    "\n\nAnswer the question based",
)


def read(path: str | Path) -> Iterator[Sample]:
    """Samples of a file; ValueError names the line and key of what is wrong."""
    file = Path(path)
    task = file.absolute().parent.name if file.stem in ("validation", "test") else file.stem
    tokens = next((n for name, n in TOKENS.items() if task.startswith(name)), None)
    if tokens is None:
        raise ValueError(
            f"{path}: {task!r} is no task of RULER's. The file, or its folder, is called as its task, which begins "
            f"with one of {', '.join(TOKENS)}."
        )
    metric = "string_match_part" if task.startswith("qa") else "string_match_all"
    common = {"task": task, "max_new_tokens": tokens, "metric": metric}
    for record in records(path, KEYS):
        text = record.text("input")
        at = max(text.rfind(mark) for mark in MARKS)
        if task.startswith("qa"):  # whose question begins one mark earlier
            at = text.rfind(MARKS[-1]) if MARKS[-1] in text else at
        at = len(text) if at < 0 else at
        prompt = {"context": text[:at], "question": text[at:], "answer_prefix": record.optional("answer_prefix")}
        yield record.sample(id=record.name("index"), answers=record.texts("outputs"), **prompt, **common)


def string_match_all(prediction: str, answers: Sequence[str]) -> float:
    """Share of the answers that the prediction contains, whatever the case."""
    return sum(answer.lower() in prediction.lower() for answer in answers) / len(answers)


def string_match_part(prediction: str, answers: Sequence[str]) -> float:
    """1 if the prediction contains any of the answers, whatever the case."""
    return float(any(answer.lower() in prediction.lower() for answer in answers))


METRICS = {
    "string_match_all": Metric(every(string_match_all), inside=True),
    "string_match_part": Metric(every(string_match_part), inside=True),
}
