"""LongBench-Write and LongWrite-Ruler (Bai et al. 2024, https://arxiv.org/abs/2408.07055): answers of a wanted length.

The length score S_l is computed, the quality score S_q is a judge's. Decoding is greedy instead of at temperature 0.5.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

from ..tasks.sample import Sample
from .files import records

BINS = (500, 2000, 4000)


def read(path: str | Path) -> Iterator[Sample]:
    """Samples of a file, whose stem is the task; ValueError names the line and key of what is wrong."""
    for record in records(path, ("prompt", "length")):
        required = record.number("length")
        if required < 1:
            raise record.wrong(f"'length' is {required}; expected a number of words, at least 1.")
        groups = [str(record.get("type"))] if record.get("type") else []
        yield record.checked(Sample(
            id=str(record.line), task=Path(path).stem, context=record.text("prompt"), question="", answers=(),
            max_new_tokens=32768, metric="length_score",
            meta={"required": required, "groups": [_bin(required), *groups]},
        ))  # fmt: skip


def _bin(words: int) -> str:
    above = [edge for edge in BINS if words < edge]
    return f"below {above[0]:,} words" if above else f"{BINS[-1]:,} words and more"
