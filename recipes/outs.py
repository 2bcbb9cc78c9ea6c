"""Where a command of recipes/ writes, checked while its options are read: a wrong place is one line, and nothing runs.

Each is a `type=` of an argparse option and raises `argparse.ArgumentTypeError`. Of several processes that a launcher
has started only the first one writes, and only it checks.
"""

from __future__ import annotations

import argparse
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

from hf_longctx.storage.files import check_file, check_folder
from hf_longctx.training.processes import is_first

RESULT = ".json"  # by which a file of results is told from a folder for one


def new_file(text: str) -> Path:
    """A file to write: no folder, in a folder that can be written."""
    return _checked(text, check_file)


def new_folder(text: str) -> Path:
    """A folder to write into: no file, and writable."""
    if Path(text).suffix == RESULT and not Path(text).is_dir():
        raise argparse.ArgumentTypeError(
            f"{text!r} is the name of a file; expected a folder, since several are written."
        )
    return _checked(text, check_folder)


def result_place(text: str) -> Path:
    """A result file, which ends in .json, or the folder of one; see `result_path`."""
    return _checked(text, check_file if Path(text).suffix == RESULT else check_folder)


def result_path(place: Path, name: str) -> Path:
    """The result file `name` (without an ending) in a folder, or the file itself that was given in place of one."""
    return place if place.suffix == RESULT else place / f"{name}{RESULT}"


# of argparse's add_argument("--out", ...)
RESULT_OPTION: dict[str, Any] = {
    "type": result_place,
    "help": "the result file (.json), or a folder for it; recipes/benchmarks/results by default",
}


def _checked(text: str, check: Callable[[str | os.PathLike[str], str], None]) -> Path:
    if not text:
        raise argparse.ArgumentTypeError("nothing is given; expected a path.")
    path = Path(text)
    try:
        if is_first():
            check(path, "")
    except (ValueError, OSError) as error:
        raise argparse.ArgumentTypeError(getattr(error, "strerror", None) or str(error)) from None
    return path
