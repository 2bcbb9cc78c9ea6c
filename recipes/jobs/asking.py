"""How another command asks a run to stop some of its jobs: by a file for each in the folder of the run."""

from __future__ import annotations

import shutil
from collections.abc import Iterable
from pathlib import Path

FOLDER = ".stop"


def ask(out: Path, names: Iterable[str]) -> None:
    """Ask the run in a folder to stop these jobs."""
    (out / FOLDER).mkdir(exist_ok=True)
    for name in names:
        (out / FOLDER / name).touch()


def asked(out: Path) -> list[str]:
    """What is asked for, once."""
    files = sorted((out / FOLDER).glob("*"))
    for file in files:
        file.unlink()
    return [file.name for file in files]


def clear(out: Path) -> None:
    """Forget what was asked of an earlier run."""
    shutil.rmtree(out / FOLDER, ignore_errors=True)
