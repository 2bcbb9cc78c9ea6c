"""LongProc's HTML to TSV: F1 of rows, in any order, without case, punctuation, articles and blanks."""

from __future__ import annotations

import csv
import re

from ..scoring import normalise

_BLOCK = re.compile(r"```tsv(.*)```", re.DOTALL)
_MARK = "```tsv"


def row_f1(prediction: str, answer: str) -> float:
    """F1 of the rows of a table in a block "```tsv", or of a whole text without one; 0 for what is no such table."""
    block = _BLOCK.search(prediction)
    text = block[1] if block else prediction.split(_MARK)[1] if _MARK in prediction else prediction
    written, expected = _rows(text), _rows(answer)
    if not written or not expected or len(written[0]) != len(expected[0]):
        return 0.0
    known, found = set(expected), set(written)
    precision = sum(row in known for row in written) / len(written)
    recall = sum(row in found for row in expected) / len(expected)
    return 2 * precision * recall / (precision + recall) if precision + recall else 0.0


def _rows(text: str) -> list[tuple[str, ...]]:
    """Rows below the heading. As published: a last row of another width is dropped, any other counts as "N/A"s."""
    try:
        heading, *rows = csv.reader(text.strip().split("\n"), delimiter="\t")
    except (csv.Error, ValueError):  # a field beyond the module's limit; no line
        return []
    if rows and len(rows[-1]) != len(heading):
        rows = rows[:-1]
    filled = (row if len(row) == len(heading) else ["N/A"] * len(heading) for row in rows)
    return [tuple(normalise(cell).replace(" ", "") for cell in row) for row in filled]
