"""The verdicts of a release of transformers as a file beside this one, and what became worse since."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import transformers
from packaging.version import Version

from tests.families.census.looking import Verdict

FOLDER = Path(__file__).parent


def minor(version: str = transformers.__version__) -> str:
    """5.23 of 5.23.0, the name of its file."""
    return ".".join(map(str, Version(version).release[:2]))


def files() -> dict[str, Path]:
    """The committed files by release, oldest first."""
    return {path.stem: path for path in sorted(FOLDER.glob("*.json"), key=lambda path: Version(path.stem))}


def read(release: str) -> dict[str, Any]:
    """The families of a file, each with `state`, and `why` or what PositionFree differs by."""
    return json.loads(files()[release].read_text(encoding="utf-8"))["families"]


def write(verdicts: Mapping[str, Verdict]) -> Path:
    """The file of the installed release, a line for each family."""
    path = FOLDER / f"{minor()}.json"
    rows = [f"  {json.dumps(name)}: {json.dumps(_row(verdict))}" for name, verdict in sorted(verdicts.items())]
    version = json.dumps(transformers.__version__)
    families = ",\n".join(rows)
    path.write_text(f'{{\n "transformers": {version},\n "families": {{\n{families}\n }}\n}}\n', encoding="utf-8")
    return path


def fallen(verdicts: Mapping[str, Verdict], release: str) -> list[str]:
    """The families that a file has as served, and that are served no longer. One that a release lacks did not fall."""
    served = [name for name, row in read(release).items() if row["state"] == "served"]
    return [name for name in served if name in verdicts and verdicts[name].state != "served"]


def reference() -> str | None:
    """The committed release to compare with: the installed one, or else the newest before it."""
    known = [release for release in files() if Version(release) <= Version(minor())]
    return known[-1] if known else None


def _row(verdict: Verdict) -> dict[str, Any]:
    if verdict.state not in ("served", "WRONG"):
        return {"state": verdict.state, "why": verdict.why}
    row = {"state": verdict.state, "same": _rounded(verdict.same), "same_padded": _rounded(verdict.same_padded)}
    if verdict.state == "WRONG":
        row |= {"within_window": _rounded(verdict.within_window), "undone": verdict.undone}
        row |= {"ways": _rounded(verdict.ways), "ways_stock": _rounded(verdict.ways_stock)}
    return row


def _rounded(value: float) -> float:
    """One digit: the next one changes with the machine."""
    return float(f"{value:.0e}")
