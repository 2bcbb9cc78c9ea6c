"""Finished cells of a run that may be interrupted."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from .files import append_line, drop_half_line, whole_lines


class CellStore:
    """Finished cells of a run, one JSON line each, so that an interrupted run continues where it stopped.

    A cell is on disk before the next one starts. A last line that was cut off in the middle is dropped.

    Args:
        path: The `.jsonl` file; it and its folder are created if missing.
        fingerprint: JSON values that tell this run from others; cells of another fingerprint are never mixed in.
        other: The alternative that errors suggest.

    Raises:
        ValueError: The file belongs to a run with another fingerprint, or is not a cell store.
        OSError: It cannot be written.
    """

    def __init__(self, path: str | Path, fingerprint: Mapping[str, Any], *, other: str = "another --out") -> None:
        self.path = Path(path)
        self._cells: dict[str, Any] = {}
        given = json.loads(json.dumps(fingerprint))
        lines = self._whole_lines(other)
        if not lines:
            append_line(self.path, {"fingerprint": given}, "cells")
            return
        kept = lines[0].get("fingerprint")
        if kept != given:
            raise ValueError(
                f"{self.path} holds cells of another run: {_difference(kept, given)}. "
                f"Choose {other}, or delete that file to start over."
            )
        self._cells = {_name(line["key"]): line["value"] for line in lines[1:]}

    def __contains__(self, key: Sequence[Any]) -> bool:
        return _name(key) in self._cells

    def __getitem__(self, key: Sequence[Any]) -> Any:
        return self._cells[_name(key)]

    def get(self, key: Sequence[Any], default: Any = None) -> Any:
        """A cell's value, or `default` if it is not finished."""
        return self._cells.get(_name(key), default)

    def __len__(self) -> int:
        return len(self._cells)

    def put(self, key: Sequence[Any], value: Any) -> None:
        """Add a finished cell; `key` is a flat list of strings, numbers and None."""
        append_line(self.path, {"key": list(key), "value": value}, "cells")
        self._cells[_name(key)] = value

    def run(self, key: Sequence[Any], work: Callable[[], Any]) -> Any:
        """The cell's value: the kept one, or that of `work()`, which is then kept."""
        if key not in self:
            self.put(key, work())
        return self[key]

    def _whole_lines(self, other: str) -> list[dict[str, Any]]:
        if not self.path.exists():
            return []
        if self.path.is_dir():
            raise ValueError(f"{self.path} is a folder, where a file was expected. Choose {other}.")
        try:
            lines, size = whole_lines(self.path, '{"key": ', '{"fingerprint": ')
            intact = all(isinstance(line, dict) and {"key", "value"} <= line.keys() for line in lines[1:])
            intact = intact and (not lines or "fingerprint" in lines[0])
        except (ValueError, TypeError):
            intact = False
        if not intact:
            raise ValueError(f"{self.path} is not a store of finished cells. Choose {other}, or delete it.")
        drop_half_line(self.path, size)
        return lines


def _name(key: Sequence[Any]) -> str:
    return json.dumps(list(key))


def _difference(kept: Any, given: Mapping[str, Any]) -> str:
    kept = kept if isinstance(kept, dict) else {}
    names = [name for name in {**kept, **given} if kept.get(name) != given.get(name)]
    return ", ".join(f"{name} was {_short(kept.get(name))} and is {_short(given.get(name))}" for name in names)


def _short(value: Any) -> str:
    text = json.dumps(value)
    return text if len(text) <= 80 else text[:77] + "..."
