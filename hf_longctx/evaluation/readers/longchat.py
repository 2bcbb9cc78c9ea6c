"""LongChat's test cases (Li et al. 2023): lines, and the first topic of a long conversation."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

from ..tasks.sample import Sample
from .files import Record, records

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
    return record.checked(Sample(
        id=record.name("random_idx"), task=task, context=document, question=mark + question,
        answers=record.texts("expected_number"), max_new_tokens=35, metric="first_integer",
        meta={"groups": [f"{record['num_lines']} lines"] if record.get("num_lines") is not None else []},
    ))  # fmt: skip


def _topics(record: Record) -> Sample:
    """The official score is a judge's; ours is whether the answer contains the first topic."""
    topics = record.texts("topics")
    if not topics:
        raise record.wrong("'topics' is empty; expected the topics of the conversation.")
    return record.checked(Sample(
        id=record.name("test_id"), task="longchat_topics", context=record.text("prompt"), question="",
        answers=topics[:1], max_new_tokens=50, metric="contains", meta={"groups": [f"{len(topics)} topics"]},
    ))  # fmt: skip
