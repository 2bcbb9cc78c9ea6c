"""The samples of a run: generated for every length, or read from files and cut to it."""

from __future__ import annotations

import dataclasses
import hashlib
import json
from collections.abc import Mapping, Sequence
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING

from ...text.corpora import LARGE, beginning, is_large, load_text
from ..readers.table import READERS, read
from .haystack import Haystack
from .sample import Sample
from .table import FILES, RULER, known_task, make_task, samples

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

MADE = 25  # samples a cell by default


def collect(
    tokenizer: PreTrainedTokenizerBase,
    tasks: Sequence[str],
    lengths: Sequence[int],
    *,
    n: int | Mapping[int, int] | None = None,
    seed: int = 0,
    depths: Sequence[float] | None = None,
    text: str = "python-docs",
    cache: str | Path | None = None,
) -> dict[tuple[str, int, float | None], list[Sample]]:
    """{(task, length, depth): samples}; arguments as in `evaluate_tasks`. A file may bring several tasks.

    Raises:
        ValueError: There is no such task or file format, or a length is too short for a task.
        OSError: A file isn't there.
    """
    check_names(tasks)
    found: dict[tuple[str, int, float | None], list[Sample]] = {}
    # of a large file, several times what the longest prompt takes
    most = max(LARGE, 32 * max(lengths))
    haystack = Haystack.of(beginning(text, most) if is_large(text) else load_text(text), Path(text).name)
    for name in _named(tasks):
        kind, _, path = name.partition(":")
        counts = {length: n[length] if isinstance(n, Mapping) else n for length in sorted(set(lengths))}
        if kind in READERS:
            by_task: dict[str, list[Sample]] = {}
            for sample in read(kind, path):
                # whatever length it was made for, it is cut to those of this run
                by_task.setdefault(sample.task, []).append(dataclasses.replace(sample, length=None))
            if not by_task:
                raise ValueError(f"{path} holds no sample. Give a file with at least one.")
            for task, every in by_task.items():
                for length, count in counts.items():
                    found[task, length, None] = list(islice(every, count))
            continue
        task_ = make_task(name, haystack)
        for length, count in counts.items():
            for depth in [None] if depths is None else sorted(set(depths)):
                made = samples(task_, tokenizer, length, count or MADE, seed=seed, depth=depth, cache=cache)
                found[task_.name, length, depth] = made
    return found


def check_names(tasks: Sequence[str]) -> None:
    """ValueError or FileNotFoundError for a task that does not exist and a file that is not there."""
    for name in _named(tasks):
        kind, _, path = name.partition(":")
        if kind in READERS:
            if not path:
                raise ValueError(f"{kind} reads a file that you have. Give it as {kind}:FILE.")
            if not Path(path).expanduser().is_file():
                raise FileNotFoundError(f"No file at {path}. Give {kind} the path of a file.")
        elif kind in FILES and path:
            if not Path(path).expanduser().is_file():
                raise FileNotFoundError(f"No file at {path}. {kind} is made of {FILES[kind]}.")
        else:
            known_task(name)


def digest(cells: Mapping[tuple[str, int, float | None], Sequence[Sample]]) -> str:
    """A short hash of samples, so that a run is never mixed with one on others."""
    whole = hashlib.sha256()
    for at, some in cells.items():
        whole.update(json.dumps([at, [sample.to_dict() for sample in some]], sort_keys=True).encode())
    return whole.hexdigest()[:16]


def _named(tasks: Sequence[str]) -> list[str]:
    """The tasks one by one, each once."""
    if not tasks:
        raise ValueError("tasks: give at least one.")
    names = [name for task in tasks for name in (RULER if task == "ruler" else (task,))]
    return list(dict.fromkeys(names))
