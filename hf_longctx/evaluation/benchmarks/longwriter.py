"""LongBench-Write and LongWrite-Ruler (Bai et al. 2024, https://arxiv.org/abs/2408.07055): answers of a wanted length.

The length score S_l is computed, the quality score S_q is a judge's. Decoding is greedy instead of at temperature 0.5.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path

from ..records import records
from ..sample import Sample
from ..scoring import Metric, whole_number

BINS = (500, 2000, 4000)
_CHINESE, _ENGLISH = re.compile(r"[\u4e00-\u9fff]"), re.compile(r"\b[a-zA-Z]+\b")


def read(path: str | Path) -> Iterator[Sample]:
    """Samples of a file, whose stem is the task; ValueError names the line and key of what is wrong."""
    common = {"task": Path(path).stem, "max_new_tokens": 32768, "metric": "length_score"}
    for record in records(path, ("prompt", "length")):
        required = record.number("length")
        if required < 1:
            raise record.wrong(f"'length' is {required}; expected a number of words, at least 1.")
        groups = [str(record.get("type"))] if record.get("type") else []
        meta = {"required": required, "groups": [_bin(required), *groups]}
        yield record.sample(id=str(record.line), context=record.text("prompt"), meta=meta, **common)


def _bin(words: int) -> str:
    above = [edge for edge in BINS if words < edge]
    return f"below {above[0]:,} words" if above else f"{BINS[-1]:,} words and more"


def n_words(text: str) -> int:
    """Chinese characters and English words, as LongWriter counts them."""
    return len(_CHINESE.findall(text)) + len(_ENGLISH.findall(text))


def length_score(text: str, required: int) -> float:
    """S_l over 100 of a text, see `words_score`."""
    return words_score(n_words(text), required)


def words_score(found: int, required: int) -> float:
    """S_l over 100 (section 3.2): 1 at `required` words, 0 at four times and at a third of it, and for no word at all.

    Raises:
        ValueError: `required` is below 1.
    """
    if required < 1:
        raise ValueError(f"required={required}: expected a length of at least one word.")
    if found == 0:
        return 0.0
    if found > required:
        return max(0.0, 1 - (found / required - 1) / 3)
    return max(0.0, 1 - (required / found - 1) / 2)


METRICS = {
    "length_score": Metric(
        lambda prediction, sample: length_score(prediction, whole_number(sample, "required")),
        references=False,
        needs=lambda sample: whole_number(sample, "required"),
        asked=lambda sample: whole_number(sample, "required"),
    )
}
