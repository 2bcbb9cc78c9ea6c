"""HelloBench (Que et al. 2024, https://arxiv.org/abs/2409.16191): long answers by category.

The official score is a judge's, item by item of a checklist, and stays open: what was written is kept for it. Where a
requirement names a number of words, the share of it that was written is given, as a proxy. Decoding is greedy instead
of at temperature 0.8.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path

from ..metrics import JUDGED
from ..records import records
from ..sample import Sample
from ..scoring import Metric, whole_number
from .longwriter import n_words

_WORDS = re.compile(r"no (?:shorter|less) than (\d[\d,]*) words")


def read(path: str | Path) -> Iterator[Sample]:
    """Samples of a file, whose stem is the task; ValueError names the line and key of what is wrong."""
    for record in records(path, ["id"]):
        prompt = record.text("instruction" if record.get("chat_prompt") is None else "chat_prompt")
        found = _WORDS.search(prompt)
        required = int(found.group(1).replace(",", "")) if found else None
        groups = [str(record.get("category"))] if record.get("category") else []
        meta = {"required": required, "checklists": record.get("checklists", []), "groups": groups}
        metric = JUDGED if required is None else "long_enough"
        common = {"task": Path(path).stem, "max_new_tokens": 16384, "metric": metric}
        yield record.sample(id=record.name("id"), context=prompt, meta=meta, **common)


def long_enough(text: str, required: int) -> float:
    """Share of `required` words, at most 1: what "no shorter than" asks for. A proxy, no judge."""
    return min(1.0, n_words(text) / required)


METRICS = {
    "long_enough": Metric(
        lambda prediction, sample: long_enough(prediction, whole_number(sample, "required")),
        references=False,
        needs=lambda sample: whole_number(sample, "required"),
    )
}
