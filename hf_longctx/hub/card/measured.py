"""The part of a card that says what was measured: tables as the project's own pages have them, and pictures."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from .evidence import Evidence
from .pictures import Picture

FOLDER = "measured"  # beside the card: the files of results and their pictures
_LONG = 24  # rows; longer tables are folded
_NOT_MEASURED = "Not measured: this card was written without results."


def measured(found: Sequence[Evidence], pictures: Mapping[str, Sequence[Picture]]) -> list[str]:
    """Paragraphs: of each file its table, with conditions and command, and its pictures by the file's name."""
    if not found:
        return [_NOT_MEASURED]
    parts = []
    for one in found:
        parts += [f"### {one.name}", _table(one)]
        parts += [f"![{picture.title}]({FOLDER}/{picture.name})" for picture in pictures.get(one.name, ())]
        told = f"Every number is in [{one.name}.json]({FOLDER}/{one.name}.json)."
        parts.append(told if one.settings else f"{told} It does not record the settings of a method: see its command.")
    return parts


def _table(found: Evidence) -> str:
    from ...evaluation.report.markdown import table

    text = table(found.data).strip()
    rows = len(found.data["rows"])
    if rows <= _LONG:
        return text
    return f"<details><summary>{rows} rows</summary>\n\n{text}\n\n</details>"
