"""LongChat's test cases (Li et al. 2023): lines, and the first topic of a long conversation."""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from pathlib import Path

from ..records import Record, records
from ..sample import Sample
from ..scoring import Metric, every

_LAST = "\nNow the record is over."


def read(path: str | Path) -> Iterator[Sample]:
    """Samples of `lines` and `topics` test cases; ValueError names the line and key of what is wrong."""
    for record in records(path, ["prompt"]):
        if not record.data.keys() & {"expected_number", "topics"}:
            raise record.wrong("neither 'expected_number' (lines) nor 'topics' is there; expected one of them.")
        yield lines(record) if "expected_number" in record.data else _topics(record)


def lines(record: Record, task: str = "longchat_lines") -> Sample:
    """A test case of lines: the first number in at most 35 tokens is compared."""
    document, mark, question = record.text("prompt").rpartition(_LAST)
    if not mark:
        document, question = question, ""
    groups = [f"{record['num_lines']} lines"] if record.get("num_lines") is not None else []
    prompt = {"context": document, "question": mark + question, "answers": record.texts("expected_number")}
    common = {"task": task, "max_new_tokens": 35, "metric": "first_integer"}
    return record.sample(id=record.name("random_idx"), meta={"groups": groups}, **prompt, **common)


def _topics(record: Record) -> Sample:
    """The official score is a judge's; this one is whether the answer contains the first topic."""
    topics = record.texts("topics")
    if not topics:
        raise record.wrong("'topics' is empty; expected the topics of the conversation.")
    prompt = {"context": record.text("prompt"), "answers": topics[:1]}
    common = {"task": "longchat_topics", "max_new_tokens": 50, "metric": "contains"}
    return record.sample(id=record.name("test_id"), meta={"groups": [f"{len(topics)} topics"]}, **prompt, **common)


def first_integer(prediction: str, answers: Sequence[str]) -> float:
    """1 if the first run of digits in the prediction is one of the answers."""
    found = re.search(r"\d+", prediction)
    return float(found is not None and found.group() in answers)


METRICS = {"first_integer": Metric(every(first_integer), shape=(str.isdecimal, "a number in digits"))}
