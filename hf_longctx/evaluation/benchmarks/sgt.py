"""SGT, called LongGenBench (Wu et al. 2024, https://arxiv.org/abs/2409.02076): many numbered sections in one answer.

Scored by completion rate times instructions followed (wAvg). Whether a section follows an instruction is for a judge,
and here a proxy decides: its words have to be in the section.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

from ..records import records
from ..sample import Sample
from ..scoring import Metric, meta, normalise, whole_number

CHECKS = ("checks_once", "checks_range", "checks_periodic")


def read(path: str | Path) -> Iterator[Sample]:
    """Samples of a file; ValueError names the line and key of what is wrong."""
    task = Path(path).stem
    tokens = 16384 if "short" in task.lower() else 32768
    common = {"task": task, "max_new_tokens": tokens, "metric": "sgt"}
    for record in records(path, ("prompt", "type", "number", *CHECKS)):
        checks: dict[str, list[str]] = {}  # a section may have one of each kind
        for key in CHECKS:
            some = record[key]
            if not isinstance(some, dict) or not all(i.isdecimal() and isinstance(t, str) for i, t in some.items()):
                raise record.wrong(f"{key!r} has to be an object of section numbers and texts.")
            for i, text in some.items():
                checks.setdefault(str(int(i)), []).append(text)
        kind = record.text("type")
        about = {"type": kind, "number": record.number("number"), "checks": checks, "groups": [kind]}
        yield record.sample(id=str(record.line), context=record.text("prompt"), meta=about, **common)


def sections(text: str, kind: str) -> dict[int, str]:
    """Numbered sections of an answer, up to "*** finished": {number: text}. A number's first section counts."""
    found: dict[int, str] = {}
    for part in text.split("*** finished")[0].split("#*#"):
        match = re.search(rf"{re.escape(kind)} (\d+)", part)
        if match:
            found.setdefault(int(match.group(1)), part)
    return found


def completion_rate(text: str, kind: str, number: int) -> float:
    """SGT's CR: the share of the sections asked for that are there."""
    return len([i for i in sections(text, kind) if 1 <= i <= number]) / number


def instructions_followed(text: str, kind: str, checks: Mapping[int, str | Sequence[str]]) -> tuple[float, float]:
    """Proxies of SGT's STIC-1 and STIC-2: checks that hold, over those whose section is there and over all of them.

    The official judge is an LLM that is asked whether a section includes a check; here the words of the check have to
    be in it. A section may have several.
    """
    there = sections(text, kind)
    every = [(i, one) for i, some in checks.items() for one in ([some] if isinstance(some, str) else some)]
    present = [(i, one) for i, one in every if i in there]
    held = sum(_includes(there[i], one) for i, one in present)
    return (held / len(present) if present else 0.0), (held / len(every) if every else 0.0)


def _includes(text: str, check: str) -> bool:
    words = set(normalise(text).split())
    wanted = normalise(check).split()
    return bool(wanted) and sum(word in words for word in wanted) / len(wanted) >= 0.8


def _score(prediction: str, sample: Sample) -> float:
    """The weighted average, CR x STIC-2, with the proxy of the latter."""
    kind, number = meta(sample, "type"), meta(sample, "number")
    checks = {int(i): text for i, text in meta(sample, "checks").items()}
    return completion_rate(prediction, kind, number) * instructions_followed(prediction, kind, checks)[1]


def _needs(sample: Sample) -> None:
    whole_number(sample, "number")
    for key, kind in (("type", str), ("checks", Mapping)):
        if not isinstance(meta(sample, key), kind):
            raise ValueError(f"{key}={meta(sample, key)!r:.60}: {sample.metric} needs what the benchmark's files have.")


METRICS = {"sgt": Metric(_score, references=False, needs=_needs)}
