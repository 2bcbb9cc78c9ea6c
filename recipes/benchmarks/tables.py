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
    """A Markdown table, one line a row, and the conditions below it.

    Others' values get a column each where every row that has any has the same ones, and share one column otherwise.
    """
    rows = result["rows"]
    named = {tuple(row["beside"]) for row in rows if row.get("beside")}
    others = list(named.pop()) if len(named) == 1 else []
    barred = any(row.get("bar") for row in rows)
    head = ["what", "hf_longctx", *(["bar"] if barred else []), *(others or (["beside"] if named else []))]
    lines = [head, ["---", "---:", *["---"] * (len(head) - 2)]]
    for row in rows:
        beside = row.get("beside") or {}
        line = [row["what"], _number(row["value"], row["unit"]), *([_bar(row)] if barred else [])]
        if others:
            line += [_number(beside.get(name)) for name in others]
        elif named:
            line.append(_joined(beside))
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
    digits = f"{value:,}" if isinstance(value, int) else f"{value:,.4g}" if abs(value) < 1e4 else f"{value:,.0f}"
    return f"{digits} {unit}".strip()


def _joined(beside: dict[str, Any]) -> str:
    """Named values, or only their range where they are many samples of one thing; a name with a unit is "stock, ms"."""
    numbers = [value for value in beside.values() if isinstance(value, int | float)]
    if len(numbers) == len(beside) > 5 and not any(", " in name for name in beside):
        return f"{len(numbers)} values, {_number(min(numbers))} to {_number(max(numbers))}"
    return "; ".join(f"{name}: {_number(value)}" for name, value in beside.items()) or "–"


def _bar(row: dict[str, Any]) -> str:
    if not row.get("bar"):
        return "–"
    return f"{row['bar']}: {'holds' if row.get('holds') else 'missed'}"


def _cell(text: str) -> str:
    return text.replace("|", "\\|").replace("\n", " ")
