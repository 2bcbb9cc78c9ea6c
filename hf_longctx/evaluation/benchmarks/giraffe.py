"""Giraffe's three tasks (Pal et al. 2023, https://arxiv.org/abs/2308.10882): lines, FreeFormQA, AlteredNumericQA.

The two on Wikipedia are conversations, whose second turn is the answer that has to be present in the prediction; the
file's stem is the task's name.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

from ..records import records
from ..sample import Sample
from ..scoring import Metric
from .longchat import lines


def read(path: str | Path) -> Iterator[Sample]:
    """Samples of a file; ValueError names the line and key of what is wrong."""
    common = {"task": Path(path).stem, "max_new_tokens": 64, "metric": "presence"}
    for record in records(path):
        if "expected_number" in record.data:
            yield lines(record, "giraffe_lines")
            continue
        turns = record.many("conversations")
        if len(turns) < 2 or not all(isinstance(turn, dict) and isinstance(turn.get("value"), str) for turn in turns):
            raise record.wrong("'conversations' has to be a prompt and an answer, each with a text 'value'.")
        text, answer = (turn["value"] for turn in turns[:2])
        meta = {"tok_len": record.get("tok_len")}
        yield record.sample(id=record.name("id"), context=text, answers=(answer,), meta=meta, **common)


METRICS = {
    "presence": Metric(
        lambda prediction, sample: float(any(a.strip() in prediction for a in sample.answers)), inside=True
    )
}
