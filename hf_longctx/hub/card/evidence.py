"""The result files of a card, read and refused where they do not say how a number came about."""

from __future__ import annotations

import json
import math
import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

_MADE_FROM = ("command", "commit", "hardware", "date")  # what a result must say of itself
_NOT_SAID = ("", "unknown", "none", "n/a", "-")
_TODO = "Give a file that `hf-longctx eval` or a command of recipes/benchmarks wrote."


@dataclass(frozen=True)
class Evidence:
    """A result file.

    Args:
        name: Of its copy beside the card, without an ending.
        data: What it holds.
        text: The same, as it was read.
        source: What messages call it.
    """

    name: str
    data: dict[str, Any]
    text: str
    source: str

    @property
    def settings(self) -> dict[str, Any]:
        """What the run was asked for; empty where the file does not say."""
        found = self.data.get("settings")
        return found if isinstance(found, dict) else {}

    @property
    def method(self) -> dict[str, Any] | None:
        """The method that was measured, as it is saved; None where the model was measured as it is."""
        found = self.settings.get("method")
        return found if isinstance(found, dict) and isinstance(found.get("name"), str) else None

    def values(self) -> Iterator[tuple[Mapping[str, Any], float]]:
        """The rows with the value of the model that the card is of: the method's, or that of the model as it is."""
        names = self.settings.get("configurations")
        stock = isinstance(names, list) and len(names) > 1 and self.method is None
        for row in self.data["rows"]:
            # `value` is of the last configuration, and the model as it is stands first
            value = (row.get("beside") or {}).get(names[0]) if stock and names else row.get("value")
            if isinstance(value, int | float) and not isinstance(value, bool):
                yield row, value


def read_results(paths: Iterable[str | Path]) -> list[Evidence]:
    """Result files, and those in folders that `hf-longctx eval --out` wrote to, each once.

    Raises:
        ValueError: A file is none, holds a number that is not finite, or does not say with which command, commit and
            hardware it was made, and when.
    """
    found: list[Evidence] = []
    files = {file.resolve(): file for path in paths for file in _files(Path(path))}
    for place, file in files.items():
        stem = place.parent.name if place.stem == "results" else file.stem
        name = free_name(re.sub(r"[^\w-]+", "-", stem).strip("-") or "results", [one.name for one in found])
        text = _text(file)
        found.append(Evidence(name, _checked(str(file), text), text, str(file)))
    return found


def _files(path: Path) -> Sequence[Path]:
    if path.is_dir():
        from ...evaluation.report.files import collect

        found, left = collect(path)
        if damaged := [file for file in left if file.damaged]:
            raise ValueError(f"{str(path / damaged[0].name)!r} {damaged[0].why}. Mend it or take it out of the folder.")
        return [path / file.name for file in found]
    if not path.is_file():
        raise ValueError(f"{str(path)!r}: there is no such file of results. {_TODO}")
    return [path]


def _text(file: Path) -> str:
    try:
        return file.read_text(encoding="utf-8-sig")
    except UnicodeDecodeError as error:
        raise ValueError(f"{str(file)!r} is not UTF-8 text. {_TODO}") from error


def _checked(source: str, text: str) -> dict[str, Any]:
    from ...evaluation.report.files import what_is_wrong

    try:
        found: Any = json.loads(text)
    except ValueError as error:
        raise ValueError(f"{source!r} is not JSON ({error}). {_TODO}") from error
    if not isinstance(found, dict):
        raise ValueError(f"{source!r} holds a {type(found).__name__}, expected an object. {_TODO}")
    missing = [name for name in (*_MADE_FROM, "rows") if _is_missing(found.get(name))]
    if missing:
        raise ValueError(f"{source!r} does not say its {', '.join(missing)}. {_TODO}")
    if wrong := what_is_wrong(found):
        raise ValueError(f"{source!r} {wrong}. {_TODO}")
    if place := next(_not_finite(found), None):
        raise ValueError(f"{source!r} holds a number that is not finite: {place}. Measure it again, or take it out.")
    return found


def _is_missing(value: Any) -> bool:
    return not value or (isinstance(value, str) and value.strip().lower() in _NOT_SAID)


def _not_finite(value: Any, place: str = "") -> Iterator[str]:
    """Where NaN and infinities stand, which Python reads from JSON."""
    if isinstance(value, float) and not math.isfinite(value):
        yield f"{place} is {value}"
    elif isinstance(value, dict):
        for key, item in value.items():
            yield from _not_finite(item, f"{place}.{key}" if place else str(key))
    elif isinstance(value, list):
        for number, item in enumerate(value, start=1):
            yield from _not_finite(item, f"{place}[{number}]")


def free_name(name: str, taken: Sequence[str]) -> str:
    """The name, with a number behind it where it is taken."""
    number = 2
    free = name
    while free in taken:
        free, number = f"{name}-{number}", number + 1
    return free
