"""What jobs need: optional packages, which their commands say themselves, so that no list is kept here; and texts."""

from __future__ import annotations

import importlib
import importlib.util
import re
import shlex
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path

from hf_longctx.upstream.installing import Package, check_packages

from .job import Job

# `-m recipes.NAME WORDS`, however it is launched, up to the end of the line or another command
COMMAND = re.compile(r"-m (recipes\.[\w.]+)([^\n;&|>]*)")


def check(jobs: Iterable[Job]) -> None:
    """ImportError that names every job whose commands need a package that is missing, and how to get it."""
    told: dict[str, list[str]] = {}
    for job in jobs:
        try:
            check_packages(needed(job))
        except ImportError as error:
            told.setdefault(str(error), []).append(job.name)
    if told:
        raise ImportError(" ".join(f"{', '.join(names)}: {why}" for why, names in told.items()))


def check_documents(jobs: Iterable[Job], folder: Path) -> None:
    """ValueError that names every job that reads the documents, where there are none."""
    reading = [job.name for job in jobs if shlex.quote(str(folder)) in job.command]
    if reading and not any(folder.glob("*.txt")):
        raise ValueError(
            f"{', '.join(reading)}: there are no texts in {folder}. python -m recipes.benchmarks.documents DIR fetches "
            f"them; give --documents DIR."
        )


def check_files(jobs: Sequence[Job], out: Path) -> None:
    """ValueError that names every job that reads a file which is not in `out` and which no job here writes."""
    names = {job.name for job in jobs}
    for job in jobs:
        for other, file in job.reads:
            if other not in names and not (out / other / file).exists():
                raise ValueError(
                    f"{job.name}: {out / other / file} is not there. Run {other} as well, with the same --out."
                )


def needed(job: Job) -> Iterator[Package]:
    """The `packages` of the modules that a job runs: some, or a function of the arguments; one without needs none."""
    for name, words in COMMAND.findall(job.command):
        spec = importlib.util.find_spec(name)
        module = importlib.import_module(f"{name}.__main__" if spec and spec.submodule_search_locations else name)
        own = getattr(module, "packages", ())
        yield from own(shlex.split(words)) if callable(own) else own
