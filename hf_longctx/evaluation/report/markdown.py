"""A result file as a table of Markdown, for documents and for cards of checkpoints."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from .rows import conditions, reasons, row_lines


def table(result: Mapping[str, Any]) -> str:
    """A Markdown table, one line per row, other packages' values beside hf_longctx's, and the conditions below it."""
    head, *rest = row_lines(result)
    lines = [head, ["---", *["---:"] * (len(head) - 1)], *rest]
    why = [f"- {reason}" for reason in reasons(result["rows"])]
    parts = ["\n".join(f"| {' | '.join(_cell(text) for text in line)} |" for line in lines)]
    parts += ["\n".join(why)] if why else []
    parts.append(f"{conditions(result)} `{result['command']}`")
    return "\n" + "\n\n".join(parts) + "\n\n"


def _cell(text: str) -> str:
    return " ".join(text.replace("|", "\\|").split())
