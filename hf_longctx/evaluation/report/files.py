"""The result files of a folder, and what else lies there and why it is none."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

# A result file is kilobytes; a larger file is a tokenizer or a data set, and would be read for nothing.
LARGEST = 64 * 2**20
_TEXTS = ("command", "commit", "hardware", "model", "date")


@dataclass(frozen=True)
class ResultFile:
    """A result file. `name` is its path inside the folder."""

    name: str
    data: dict[str, Any]


@dataclass(frozen=True)
class LeftOut:
    """A file that is not shown, and the reason."""

    name: str
    why: str
    damaged: bool = True  # False: some other program's file, of no concern


def collect(folder: str | Path) -> tuple[list[ResultFile], list[LeftOut]]:
    """Read every `*.json` below `folder` (or one file) and keep the result files.

    Args:
        folder: What `hf-longctx eval --out` wrote, a folder of such folders, or one result file. Names that begin
            with a dot are not looked at.

    Returns:
        The result files in the order of their names, and those left out: damaged ones, other programs' JSON, and runs
        that left finished cells and no results.

    Raises:
        FileNotFoundError: There is no such folder.
        ValueError: It holds no result file; the message names what it does hold.
    """
    root = Path(folder)
    if not root.exists():
        raise FileNotFoundError(f"{folder}: no such folder. Give the one that `hf-longctx eval --out` wrote to.")
    if root.is_file():
        paths, root = [root], root.parent
    else:
        paths = sorted(path for path in _visible(root) if path.suffix == ".json" and path.is_file())
    found: list[ResultFile] = []
    left: list[LeftOut] = []
    for path in paths:
        name = path.relative_to(root).as_posix()
        kept = _read(path, name)
        (found if isinstance(kept, ResultFile) else left).append(kept)  # type: ignore[arg-type]  # the list fits
    left += _unfinished(root) if Path(folder).is_dir() else []
    if not found:
        why = f"{folder} holds no result file of hf_longctx{_instead(left)}."
        raise ValueError(f"{why} `hf-longctx eval MODEL --task ... --out DIR` writes one.")
    return found, left


def _visible(root: Path) -> Iterator[Path]:
    return (path for path in root.rglob("*") if not any(p.startswith(".") for p in path.relative_to(root).parts))


def _read(path: Path, name: str) -> ResultFile | LeftOut:
    try:
        if path.stat().st_size > LARGEST:
            return LeftOut(name, f"larger than the {LARGEST >> 20} MiB of any result file", damaged=False)
        text = path.read_text(encoding="utf-8-sig")
        data = json.loads(text, parse_constant=lambda constant: None)  # NaN and infinities are missing values
    except OSError as error:
        return LeftOut(name, f"cannot be read ({error.strerror or error})")
    except UnicodeDecodeError:
        return LeftOut(name, "is not UTF-8 text")
    except RecursionError:
        return LeftOut(name, "is nested too deeply", damaged=False)
    except ValueError as error:
        return LeftOut(name, "is empty" if not text.strip() else f"is no whole JSON ({error})")
    if not isinstance(data, dict) or "rows" not in data:
        return LeftOut(name, 'is no result file (it has no "rows")', damaged=False)
    wrong = what_is_wrong(data)
    return LeftOut(name, wrong) if wrong else ResultFile(name, data)


def what_is_wrong(data: Mapping[str, Any]) -> str | None:
    """What a result file lacks, or None."""
    for key in _TEXTS:
        if not isinstance(data.get(key), str):
            return f'lacks "{key}" (a text)' if key not in data else f'has no text in "{key}"'
    if not isinstance(data.get("versions"), dict):
        return 'lacks "versions" (names and versions)'
    if not isinstance(data["rows"], list) or not data["rows"]:
        return 'has no rows in "rows"'
    for number, row in enumerate(data["rows"], start=1):
        if not isinstance(row, dict) or not isinstance(row.get("what"), str):
            return f'has no "what" in row {number}'
        if not is_number(row.get("value")) and row.get("value") is not None:
            return f'has no number in "value" of row {number}'
        for key in ("beside", "detail"):
            if not isinstance(row.get(key) or {}, dict):
                return f'has no object in "{key}" of row {number}'
    return None


def is_number(value: Any) -> bool:
    """An int or a float, and not True or False."""
    return isinstance(value, int | float) and not isinstance(value, bool)


def _unfinished(root: Path) -> list[LeftOut]:
    stores = [path for path in _visible(root) if path.name == "cells.jsonl"]
    why = "is a run that was interrupted; the same command again finishes it"
    waiting = [path.parent for path in sorted(stores) if not (path.parent / "results.json").exists()]
    return [LeftOut(folder.relative_to(root).as_posix(), why) for folder in waiting]


def _instead(left: list[LeftOut]) -> str:
    if not left:
        return ": there is no .json file in it"
    named = "; ".join(f"{file.name} {file.why}" for file in left[:3])
    return f": {named}" + (f"; and {len(left) - 3} more" if len(left) > 3 else "")
