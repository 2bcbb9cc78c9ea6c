"""SGT, called LongGenBench (Wu et al. 2024, https://arxiv.org/abs/2409.02076): many numbered sections in one answer.

Scored by completion rate times instructions followed (wAvg); whether a section follows an instruction is a judge's to
say, and here a proxy: its words have to be in it.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

from ..tasks.sample import Sample
from .files import records

CHECKS = ("checks_once", "checks_range", "checks_periodic")


def read(path: str | Path) -> Iterator[Sample]:
    """Samples of a file; ValueError names the line and key of what is wrong."""
    for record in records(path, ("prompt", "type", "number", *CHECKS)):
        checks: dict[str, list[str]] = {}  # a section may have one of each kind
        for key in CHECKS:
            some = record[key]
            if not isinstance(some, dict) or not all(i.isdecimal() and isinstance(t, str) for i, t in some.items()):
                raise record.wrong(f"{key!r} has to be an object of section numbers and texts.")
            for i, text in some.items():
                checks.setdefault(str(int(i)), []).append(text)
        yield record.checked(Sample(
            id=str(record.line), task=Path(path).stem, context=record.text("prompt"), question="", answers=(),
            max_new_tokens=16384 if "short" in Path(path).stem.lower() else 32768, metric="sgt",
            meta={"type": record.text("type"), "number": record.number("number"), "checks": checks,
                  "groups": [record.text("type")]},
        ))  # fmt: skip
