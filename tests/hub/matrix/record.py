"""The matrix of a release of transformers as a file beside this one."""

from __future__ import annotations

import json
import platform
from importlib.metadata import version
from pathlib import Path
from typing import Any

from packaging.version import Version

from tests.hub.matrix.judging import Judged

FOLDER = Path(__file__).parent
COMMAND = "python -m tests.hub.matrix --write"
PACKAGES = ("transformers", "huggingface_hub", "torch", "peft", "tokenizers")


def minor(release: str) -> str:
    """5.23 of 5.23.0, the name of its file."""
    return ".".join(map(str, Version(release).release[:2]))


def files() -> dict[str, Path]:
    """The committed files by release, oldest first."""
    return {path.stem: path for path in sorted(FOLDER.glob("*.json"), key=lambda path: Version(path.stem))}


def read(release: str) -> dict[str, Any]:
    """A file: `versions`, `command`, `seconds`, and `rows` by their names."""
    return json.loads(files()[release].read_text(encoding="utf-8"))


def write(judged: list[Judged], seconds: float) -> Path:
    """The file of the installed release, a line for each row."""
    versions = {"python": platform.python_version(), **{name: version(name) for name in PACKAGES}}
    path = FOLDER / f"{minor(versions['transformers'])}.json"
    head = {"command": COMMAND, "versions": versions, "seconds": round(seconds)}
    lines = [f" {json.dumps(name)}: {json.dumps(value)}," for name, value in head.items()]
    rows = ",\n".join(f"  {json.dumps(one.row.name)}: {json.dumps(_entry(one))}" for one in judged)
    path.write_text("\n".join(["{", *lines, f' "rows": {{\n{rows}\n }}\n}}\n']), encoding="utf-8")
    return path


def _entry(judged: Judged) -> dict[str, Any]:
    distance = {} if judged.distance is None else {"distance": float(f"{judged.distance:.0e}")}
    return {"found": judged.found, **distance, **({"wrong": judged.wrong} if judged.wrong else {})}
