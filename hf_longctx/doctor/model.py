"""What a saved or published model is, as far as its small files tell."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import Path

from ..hub import shim
from ..hub.check import check
from ..hub.download import small_files
from ..hub.tiers import read_json
from .diagnosis import Diagnosis


def model_findings(model: str) -> Iterator[Diagnosis]:
    """Tier, methods, shim, auto_map, card, and what is wrong; one line where there is no model to look at.

    Args:
        model: A folder or a Hub id.
    """
    try:
        with small_files(model) as folder:
            yield from _of_folder(folder)
    except (OSError, ValueError) as error:
        yield Diagnosis("model", f"cannot be looked at: {error}", wrong=True)


def _of_folder(folder: Path) -> Iterator[Diagnosis]:
    report = check(folder)
    yield Diagnosis("model", f"tier {report.tier.name}; {', '.join(report.methods) or 'no method'}")
    for where, what in report.tier.loads:
        yield Diagnosis("loads", f"{where}: {what}")
    yield Diagnosis("shim", _shim(folder))
    yield Diagnosis("auto_map", _auto_map(folder))
    yield Diagnosis("card", "README.md" if (folder / "README.md").is_file() else "none")
    for note in report.notes:
        yield Diagnosis("note", note)
    for problem in report.problems:
        yield Diagnosis("problem", problem, wrong=True)


def _shim(folder: Path) -> str:
    file = folder / shim.FILE
    if not file.is_file():
        return "none"
    unchanged = shim.is_unchanged(file.read_text(encoding="utf-8", errors="replace"))
    return f"{shim.FILE}, {'unchanged' if unchanged else 'edited'}"


def _auto_map(folder: Path) -> str:
    found = (read_json(folder, "config.json") or {}).get("auto_map")
    if not isinstance(found, Mapping) or not found:
        return "none"
    whose: dict[str, list[str]] = {}
    for name, place in found.items():
        whose.setdefault("hf_longctx" if shim.is_ours(place) else "other code", []).append(name)
    return "; ".join(f"{code}: {', '.join(names)}" for code, names in whose.items())
