"""Local files: whole texts and JSON lines, whose errors name the file, the line and the key."""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ..text.corpora import load_text
from .metrics import needs
from .sample import Sample


def whole_text(path: str | Path) -> str:
    """A UTF-8 file. FileNotFoundError and ValueError as in `load_text`; a name it knows is not meant here."""
    return load_text(Path(path).expanduser().absolute(), holds="samples in it")


@dataclass(frozen=True)
class Record:
    """A JSON object and where it stands: on a line of JSON lines, or as an item of a list."""

    path: Path
    line: int
    data: dict[str, Any]
    counted: str = "line"

    def __getitem__(self, key: str) -> Any:
        """The value of a key that has to be there."""
        if key not in self.data:
            there = ", ".join(map(repr, self.data)) or "none"
            raise self.wrong(f"the key {key!r} is missing. There are: {there}.")
        return self.data[key]

    def get(self, key: str, default: Any = None) -> Any:
        """The value of a key, or `default`."""
        return self.data.get(key, default)

    def text(self, key: str) -> str:
        """The value of a key that has to be a text."""
        return str(self._typed(key, str, "a text"))

    def number(self, key: str) -> int:
        """The value of a key that has to be a whole number."""
        return int(self._typed(key, int, "a whole number"))

    def many(self, key: str) -> list[Any]:
        """The value of a key that has to be a list."""
        return list(self._typed(key, list, "a list"))

    def texts(self, key: str) -> tuple[str, ...]:
        """The value of a key that has to be a list of texts or numbers; one of them is a list of one."""
        value = self[key]
        if not is_text(value) and not isinstance(value, list):
            raise self.wrong(f"the key {key!r} is {value!r:.60}; expected a text or a list of texts.")
        some = value if isinstance(value, list) else [value]
        for i, item in enumerate(some):
            if not is_text(item):
                raise self.wrong(f"the key {key!r} has {item!r:.60} at {i}; expected texts.")
        return tuple(map(str, some))

    def name(self, key: str) -> str:
        """What the record calls itself under a key; where it stands if it does not."""
        return str(self.line if self.get(key) is None else self[key])

    def optional(self, key: str, default: str = "") -> str:
        """The value of a key that has to be a text if it is there."""
        return self.text(key) if key in self.data else default

    def sample(self, **fields: Any) -> Sample:
        """A `Sample` of these fields, `checked`; without question and answers where the benchmark has none."""
        return self.checked(Sample(**{"question": "", "answers": (), **fields}))

    def checked(self, sample: Sample) -> Sample:
        """The sample, if it has what its metric needs; else an error that says where it stands."""
        try:
            needs(sample)
        except ValueError as error:
            raise self.wrong(str(error)) from None
        return sample

    def wrong(self, what: str) -> ValueError:
        """An error that says where the record stands."""
        return ValueError(f"{self.path}, {self.counted} {self.line}: {what}")

    def _typed(self, key: str, kind: type, words: str) -> Any:
        value = self[key]
        if not isinstance(value, kind) or isinstance(value, bool):
            raise self.wrong(f"the key {key!r} is {value!r:.60}; expected {words}.")
        return value


def is_text(value: Any) -> bool:
    """A text, or a number, which is one in digits."""
    return isinstance(value, str | int | float) and not isinstance(value, bool)


def records(path: str | Path, keys: Sequence[str] = ()) -> Iterator[Record]:
    """The objects of a file of JSON lines, or of one JSON list; each must have `keys`.

    Raises:
        FileNotFoundError: There is no such file.
        ValueError: It is no text or not UTF-8, a line is no JSON object, or one lacks a key.
    """
    path = Path(path)
    text = whole_text(path)
    counted = "item" if text.lstrip().startswith("[") else "line"  # the line of an item is not known
    found = _items(path, text) if counted == "item" else _lines(path, text)
    for line, data in found:
        if not isinstance(data, dict):
            raise ValueError(f"{path}, {counted} {line}: expected a JSON object, found {str(data)[:60]!r}.")
        record = Record(path, line, data, counted)
        for key in keys:
            record[key]
        yield record


def _items(path: Path, text: str) -> list[tuple[int, Any]]:
    try:
        return list(enumerate(json.loads(text), 1))
    except json.JSONDecodeError as error:
        raise ValueError(f"{path}, line {error.lineno}: not JSON ({error.msg}).") from None


def _lines(path: Path, text: str) -> list[tuple[int, Any]]:
    found = []
    # not splitlines(), which takes a character inside a text for a line's end
    for line, row in enumerate(text.split("\n"), 1):
        try:
            found += [(line, json.loads(row))] if row.strip() else []
        except json.JSONDecodeError as error:
            raise ValueError(f"{path}, line {line}: not JSON ({error.msg}). Expected one object per line.") from None
    return found
