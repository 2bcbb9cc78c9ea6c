"""Renders the tables of the README and the cards from `results/*.json`, and lists the rows that miss their bar.

A block in a document is `<!-- table:NAME -->`, anything, `<!-- /table -->`; NAME is that of the result file. A block
`<!-- bars:NAME -->` has the rows of it that have a bar, without what stands beside them, a block
`<!-- only:NAME WORDS -->` those whose names have these words in them. A block `<!-- versions:NAME -->` is made of the
records in `recipes/compat/`.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from hf_longctx.evaluation.report.markdown import table
from hf_longctx.evaluation.report.rows import number
from recipes.compat.documents import versions_text

ROOT = Path(__file__).resolve().parents[2]
_BLOCK = re.compile(
    r"(<!-- (?P<kind>table|bars|only|versions):(?P<name>[\w-]+)(?: (?P<words>[^>\n]+))? -->\n).*?(<!-- /(?P=kind) -->)",
    re.DOTALL,
)


def documents(root: Path = ROOT) -> list[Path]:
    """The documents whose blocks are rendered."""
    return [
        root / "README.md",
        *(path for room in ("docs", "model_cards", "recipes/*") for path in sorted(root.glob(f"{room}/*.md"))),
    ]


def render(text: str, results: Path = ROOT / "recipes/benchmarks/results") -> str:
    """`text` with every block rendered again; a block in a code sample (indented) is left alone."""

    def block(match: re.Match[str]) -> str:
        start, kind, name, words, end = match.groups()
        if kind == "versions":
            return f"{start}{versions_text(name)}{end}"
        path = results / f"{name}.json"
        if not path.is_file():
            return f"{start}*Not measured yet.*\n{end}"
        result = json.loads(path.read_text(encoding="utf-8"))
        if kind == "bars":
            result = barred(result)
        elif kind == "only":
            result = named(result, words or "")
        return f"{start}{table(result)}{end}"

    return _BLOCK.sub(block, text)


def barred(result: dict[str, Any]) -> dict[str, Any]:
    """A result file with the rows that have a bar alone; those of many kinds have too much beside them for a table."""
    return result | {"rows": [row | {"beside": {}} for row in result["rows"] if row["bar"]]}


def named(result: dict[str, Any], words: str) -> dict[str, Any]:
    """A result file with the rows alone whose names have these words in them."""
    return result | {"rows": [row for row in result["rows"] if words in row["what"]]}


def misses(results: Path = ROOT / "recipes/benchmarks/results") -> Iterator[str]:
    """One line for every row that misses its bar."""
    for path in sorted(results.glob("*.json")):
        for row in json.loads(path.read_text(encoding="utf-8"))["rows"]:
            if row.get("bar") and not row.get("holds"):
                why = row.get("why") or "no reason given"
                yield f"{path.stem}: {row['what']}: {number(row['value'], row['unit'])}, bar {row['bar']} ({why})"
