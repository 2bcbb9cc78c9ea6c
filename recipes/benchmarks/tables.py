"""Renders the tables of the README and the cards from `results/*.json`, and lists the rows that miss their bar.

A block in a document is `<!-- table:NAME -->`, anything, `<!-- /table -->`; NAME is that of the result file.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[2]
_BLOCK = re.compile(r"(<!-- table:(?P<name>[\w-]+) -->\n).*?(<!-- /table -->)", re.DOTALL)


def documents(root: Path = ROOT) -> list[Path]:
    """The documents whose blocks are rendered."""
    return [root / "README.md", *sorted((root / "model_cards").glob("*.md"))]


def render(text: str, results: Path = ROOT / "recipes/benchmarks/results") -> str:
    """`text` with every block rendered anew; a block in a code sample (indented) is left alone."""

    def block(match: re.Match[str]) -> str:
        path = results / f"{match['name']}.json"
        body = table(json.loads(path.read_text(encoding="utf-8"))) if path.is_file() else "*Not measured yet.*\n"
        return f"{match[1]}{body}{match[3]}"

    return _BLOCK.sub(block, text)


def table(result: dict[str, Any]) -> str:
    """A Markdown table, one line a row, others' values beside ours, and the conditions below it."""
    rows = result["rows"]
    others = list(dict.fromkeys(name for row in rows for name in row.get("beside") or {}))
    barred = any(row.get("bar") for row in rows)
    # a file with a heading of its own has no stock beside ours in a row: its columns are one quantity at many places
    last = [result["heading"]] if "heading" in result else []
    head = ["what", *([] if last else ["hf_longctx"]), *others, *last, *(["bar"] if barred else [])]
    lines = [head, ["---", *["---:"] * (len(head) - 1)]]
    for row in rows:
        beside = row.get("beside") or {}
        values = [_number(beside.get(name)) for name in others]
        values.insert(len(others) if last else 0, _number(row["value"], row["unit"]))
        line = [row["what"], *values]
        if barred:
            line.append(_bar(row))
        lines.append(line)
    why = [f"- {row['what']}: {row['why']}" for row in rows if row.get("why")]
    versions = ", ".join(f"{name} {version}" for name, version in result["versions"].items())
    conditions = (
        f"{result['model']} on {result['hardware']}; {versions}; {result['date'][:10]}, commit {result['commit'][:12]}."
    )
    parts = ["\n".join(f"| {' | '.join(_cell(text) for text in line)} |" for line in lines)]
    parts += ["\n".join(why)] if why else []
    parts.append(f"{conditions} `{result['command']}`")
    return "\n" + "\n\n".join(parts) + "\n\n"


def misses(results: Path = ROOT / "recipes/benchmarks/results") -> Iterator[str]:
    """One line for every row that misses its bar."""
    for path in sorted(results.glob("*.json")):
        for row in json.loads(path.read_text(encoding="utf-8"))["rows"]:
            if row.get("bar") and not row.get("holds"):
                why = row.get("why") or "no reason given"
                yield f"{path.stem}: {row['what']}: {_number(row['value'], row['unit'])}, bar {row['bar']} ({why})"


def _number(value: Any, unit: str = "") -> str:
    if value is None:
        return "–"
    if not isinstance(value, int | float):
        return str(value)
    digits = f"{value:,}" if isinstance(value, int) else f"{value:,.5g}" if abs(value) < 1e4 else f"{value:,.0f}"
    return f"{digits} {unit}".strip()


def _bar(row: dict[str, Any]) -> str:
    if not row.get("bar"):
        return "–"
    return f"{row['bar']}: {'holds' if row.get('holds') else 'missed'}"


def _cell(text: str) -> str:
    return text.replace("|", "\\|")
