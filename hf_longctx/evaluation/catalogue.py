"""Samples by name: of tasks that are generated, and of benchmarks whose files the user has."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING

from ..near import did_you_mean
from ..storage.files import write_json_lines
from ..storage.fingerprint import tokenizer_digest
from ..text.corpora import load_text
from ..upstream.installing import Package
from . import benchmarks, tasks
from .folder import declared, modules
from .generated import Generated
from .haystack import Haystack
from .sample import Sample
from .tasks import counting, needles, tracking

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

VERSION = 1  # of the generators: a change of what they write gives the next one, so that old caches are left alone
RULER = (*needles.TASKS, *tracking.TASKS, *counting.TASKS)  # its tasks that need no file, in its order


def task_names() -> list[str]:
    """The generated tasks, and those made of a file that the user has."""
    return [*declared(tasks, "TASKS"), *declared(tasks, "FROM_FILE")]


def readers() -> dict[str, Callable[[str | Path], Iterator[Sample]]]:
    """{name of a benchmark: function that reads one of its files}."""
    return {name: module.read for name, module in modules(benchmarks).items()}


def read(name: str, path: str | Path) -> Iterator[Sample]:
    """Samples of a local file of a benchmark. The task's name is its stem where the format does not say it.

    Raises:
        FileNotFoundError: There is no such file.
        ValueError: There is no such reader, or the file is not in its format; the error says where.
    """
    known = readers()
    if name not in known:
        raise ValueError(f"reader {name!r}: no such reader. {did_you_mean(name, known)}There are: {', '.join(known)}.")
    return known[name](path)


def check_name(name: str) -> None:
    """ValueError or FileNotFoundError for a task that does not exist and a file that is missing."""
    kind, _, path = name.partition(":")
    from_file, known = declared(tasks, "FROM_FILE"), readers()
    if kind in from_file:
        holds = f"{kind} is made of {from_file[kind].holds}"
        if not path:
            holds = from_file[kind].holds
            raise ValueError(f"{kind} is made of a file that you have, {holds}. Give it as {kind}:FILE.")
    elif kind in known:
        holds = f"Give {kind} the path of a file"
        if not path:
            raise ValueError(f"{kind} reads a file that you have. Give it as {kind}:FILE.")
    elif name in declared(tasks, "TASKS"):
        return
    else:
        names, alone = task_names(), list(declared(tasks, "ALONE"))
        hint = did_you_mean(kind, (*names, *known, "ruler", *alone), quoted=False)
        raise ValueError(
            f"task {name!r}: no such task. {hint}There are: {', '.join(names)}; ruler; {', '.join(alone)}, each alone; "
            f"and READER:FILE, where READER is one of {', '.join(known)}."
        )
    if not Path(path).expanduser().is_file():
        raise FileNotFoundError(f"No file at {path}. {holds}.")


def make_task(name: str, haystack: Haystack | str | None = None) -> Generated:
    """A generated task by its name, one of `task_names()`; "qa_1:FILE" and "qa_2:FILE" read a local file.

    Needles are hidden in `haystack`, CPython's language reference by default. Errors as `check_name`.
    """
    check_name(name)
    kind, _, path = name.partition(":")
    if path:
        made: Generated = declared(tasks, "FROM_FILE")[kind].of(kind, path)
        return made
    if haystack is None:
        haystack = Haystack.of(load_text("python-docs"), "python-docs")
    elif isinstance(haystack, str):
        haystack = Haystack.of(haystack)
    task: Generated = declared(tasks, "TASKS")[name](name, haystack)
    return task


def packages(names: Iterable[str]) -> tuple[Package, ...]:
    """The optional packages that these tasks are made with, for `check_packages`: a file's are known when it is read.

    "ruler" names its eleven tasks that need no file.
    """
    every = [one for name in names for one in (RULER if name == "ruler" else (name,))]
    made = [make_task(name, "A haystack.") for name in dict.fromkeys(every) if name in declared(tasks, "TASKS")]
    return tuple(dict.fromkeys(package for task in made for package in task.packages))


def samples(
    task: str | Generated,
    tokenizer: PreTrainedTokenizerBase,
    length: int,
    n: int,
    *,
    seed: int = 0,
    depth: float | None = None,
    haystack: Haystack | str | None = None,
    cache: str | Path | None = None,
) -> list[Sample]:
    """`n` samples of a task or its name, whose prompt and answer take `length` tokens together.

    See `Generated.samples` and `make_task`. `cache` is a folder: samples that were made for the same tokenizer and
    arguments are read from it, and kept there.
    """
    made = make_task(task, haystack) if isinstance(task, str) else task
    if cache is None:
        return made.samples(tokenizer, length, n, seed=seed, depth=depth)
    what = f"{VERSION} {made!r} {tokenizer_digest(tokenizer)} {length} {n} {seed} {depth}"
    path = Path(cache) / f"{made.name}-{length}-{hashlib.sha256(what.encode()).hexdigest()[:16]}.jsonl"
    if path.is_file():
        return list(read("jsonl", path))
    found = made.samples(tokenizer, length, n, seed=seed, depth=depth)
    write_json_lines(path, (sample.to_dict() for sample in found))
    return found
