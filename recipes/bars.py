"""Why a row of a result file misses its bar."""

from __future__ import annotations

from hf_longctx.evaluation.rows import row


def missed(value: float | None, bar: str | None, why: str) -> str | None:
    """`why` where a value misses its bar or is not there; None where it holds, or without a bar."""
    return why if bar is not None and not row("", value, "", bar=bar)["holds"] else None
