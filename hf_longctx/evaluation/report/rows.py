"""The rows of a result file as lines of text: values, what stands beside them, bars and reasons."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Any

LEAST_GIB = 0.001


def row_lines(result: Mapping[str, Any], rows: Sequence[Mapping[str, Any]] | None = None) -> list[list[str]]:
    """A heading and one line per row: what, the value, others' values beside it, and the bar if any row has one.

    Args:
        result: A result file's contents (see `results`).
        rows: Those to take; all by default.
    """
    rows = result["rows"] if rows is None else rows
    others = list(dict.fromkeys(name for row in rows for name in row.get("beside") or {}))
    barred = any(row.get("bar") for row in rows)
    # a file with a heading of its own compares nothing in a row: its columns are one quantity at many places
    last = [str(result["heading"])] if "heading" in result else []
    lines = [["what", *([] if last else [main_name(result)]), *others, *last, *(["bar"] if barred else [])]]
    for row in rows:
        beside = row.get("beside") or {}
        values = [_beside(name, beside.get(name)) for name in others]
        values.insert(len(others) if last else 0, number(row["value"], row.get("unit") or ""))
        lines.append([row["what"], *values, *([_bar(row)] if barred else [])])
    return lines


def main_name(result: Mapping[str, Any]) -> str:
    """Whose value a row's is: the last of the run's configurations."""
    settings = result.get("settings")
    names = settings.get("configurations") if isinstance(settings, dict) else None
    return str(names[-1]) if isinstance(names, list) and names else "hf_longctx"


def reasons(rows: Sequence[Mapping[str, Any]]) -> list[str]:
    """Why rows miss their bars or have no value."""
    return [f"{row['what']}: {row['why']}" for row in rows if row.get("why")]


def conditions(result: Mapping[str, Any]) -> str:
    """Model, hardware, versions, date and commit in one line; rows of earlier commits are counted."""
    versions = ", ".join(f"{name} {version}" for name, version in result["versions"].items())
    earlier = Counter(row["commit"][:12] for row in result["rows"] if row.get("commit"))
    commits = [f"commit {result['commit'][:12]}"]
    commits += [f"{count} row{'s' * (count > 1)} of commit {name}" for name, count in sorted(earlier.items())]
    when = f"{result['date'][:10]}, {'; '.join(commits)}."
    return f"{result['model']} on {result['hardware']}; {versions}; {when}"


def number(value: Any, unit: str = "") -> str:
    """A number in at most five digits and its unit; a dash where there is none."""
    if value is None:
        return "–"
    if isinstance(value, bool) or not isinstance(value, int | float):
        return str(value)
    short = rounded(value)
    digits = f"{short:,}" if isinstance(short, int) else f"{short:,.5g}"
    return f"{digits} {unit}".strip()


def _beside(name: str, value: Any) -> str:
    """A value of a column; bytes that are next to none as such, not as a number with an exponent."""
    few = "GiB" in name and isinstance(value, float) and 0 < value < LEAST_GIB
    return f"< {LEAST_GIB}" if few else number(value)


def rounded(value: float) -> float:
    """The number that `number` shows: of five digits, and whole from 10,000; an int is an int."""
    if isinstance(value, int):
        return value
    return float(f"{value:.5g}") if abs(value) < 1e4 else int(f"{value:.0f}")


def _bar(row: Mapping[str, Any]) -> str:
    if not row.get("bar"):
        return "–"
    if row["value"] is None:
        return f"{row['bar']}: not measured"
    return f"{row['bar']}: {'holds' if row.get('holds') else 'missed'}"
