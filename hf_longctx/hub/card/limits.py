"""The limits of methods, cut from their own pages in `model_cards/`, where they are written once."""

from __future__ import annotations

import re
from pathlib import Path

_PACKAGE = Path(__file__).resolve().parents[2]
# a wheel takes the pages along (pyproject.toml); in a checkout they lie beside the package
PAGES = (_PACKAGE / "_cards", _PACKAGE.parent / "model_cards")
_LINK = re.compile(r"\[([^\]]+)\]\((?!https?:)([^)\s]+)\)")


def limits_of(name: str) -> tuple[str, str]:
    """The title of a method and the text of its limits.

    Its page may not be there, or have none: then what its docstring says that it cannot do.
    """
    from ...registry import entries

    entry = entries()[name]
    page = next((path for room in PAGES if (path := room / f"{name}.md").is_file()), None)
    text = page.read_text(encoding="utf-8") if page else ""
    title = re.search(r"^# (.+)$", text, re.MULTILINE)
    found = re.search(r"^## Limits\n(.*?)(?=^## |\Z)", text, re.MULTILINE | re.DOTALL)
    cannot = f"- It cannot {entry['guidance']['Cannot']}"
    return title[1] if title else entry["class"], _absolute(found[1].strip()) if found else cannot


def _absolute(text: str) -> str:
    """Links to files of this project, which lead nowhere on the Hub, as the names of these files."""

    def named(link: re.Match[str]) -> str:
        words = re.sub(r"\s+", " ", link[1])
        target = link[2].removeprefix("../") if link[2].startswith("../") else f"model_cards/{link[2]}"
        return f"{words} (`{target}` of hf_longctx)"

    return _LINK.sub(named, text)
