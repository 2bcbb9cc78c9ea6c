"""What a saved or published model is, as far as its small files tell."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import Path

from ..hub import shim
from ..hub.check import check
from ..hub.download import small_files
from ..hub.tiers import read_json
from .finding import Finding


def model_findings(model: str) -> Iterator[Finding]:
    """Tier, methods, shim, auto_map, card, and what is wrong; one line where there is no model to look at.

    Args:
        model: A folder or a Hub id.
    """
    try:
        with small_files(model) as folder:
            yield from _of_folder(folder)
    except (OSError, ValueError) as error:
        yield Finding("model", f"cannot be looked at: {error}", wrong=True)


def _of_folder(folder: Path) -> Iterator[Finding]:
    report = check(folder)
    yield Finding("model", f"tier {report.tier.name}; {', '.join(report.methods) or 'no method'}")
    for where, what in report.tier.loads:
        yield Finding("loads", f"{where}: {what}")
    yield Finding("shim", _shim(folder))
    yield Finding("auto_map", _auto_map(folder))
    yield Finding("card", "README.md" if (folder / "README.md").is_file() else "none")
    for note in report.notes:
        yield Finding("note", note)
    for problem in report.problems:
        yield Finding("problem", problem, wrong=True)


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
    return ", ".join(
        f"{name}: {'hf_longctx' if shim.is_ours(place) else 'other code'}" for name, place in found.items()
    )
