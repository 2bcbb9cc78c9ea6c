"""A row of a result file: what was measured, beside what, and whether it holds its bar."""

from __future__ import annotations

import math
import operator
import re
from collections.abc import Mapping
from typing import Any

_COMPARE = {">=": operator.ge, "<=": operator.le, ">": operator.gt, "<": operator.lt, "==": operator.eq}


def row(
    what: str,
    value: float | None,
    unit: str,
    *,
    bar: str | None = None,
    why: str | None = None,
    beside: Mapping[str, Any] | None = None,
    detail: Mapping[str, Any] | None = None,
) -> dict[str, Any]:
    """One row of a result file.

    Args:
        what: What was measured, in words that stand alone.
        value: The number, or None where there is none; `why` then says so. inf and nan, which JSON lacks, become None.
        unit: Of the value.
        bar: What it must reach, such as ">= 30"; `holds` follows from it and is None without one.
        why: The reason of a missed bar or a missing value.
        beside: The same number for others, such as {"stock": 12.3}.
        detail: What a program needs to redraw or recheck the row: lengths, raw samples, seconds.

    Raises:
        ValueError: `bar` is not a comparison with a number.
    """
    if value is not None and not math.isfinite(value):
        value, why = None, why or f"the value is {value}"
    holds = None if bar is None else _holds(value, bar)
    found = {"what": what, "value": value, "unit": unit, "bar": bar, "holds": holds, "why": why}
    return {**found, "beside": _finite(beside or {}), **({"detail": _finite(detail)} if detail else {})}


def compared(
    what: str, values: Mapping[str, float | None], unit: str, *, why: str, detail: Mapping[str, Any]
) -> dict[str, Any]:
    """A row of configurations: the value of the last, the others' beside it; `why` is for a missing value."""
    *others, main = values
    missing = why if values[main] is None else None
    beside = {name: values[name] for name in others}
    return row(f"{what}, {main}", values[main], unit, why=missing, beside=beside, detail=detail)


def _holds(value: float | None, bar: str) -> bool:
    match = re.fullmatch(r"\s*(>=|<=|==|>|<)\s*(-?[\d.]+(?:e-?\d+)?)\s*", bar)
    if match is None:
        raise ValueError(f'bar="{bar}": expected a comparison with a number, such as ">= 30".')
    return value is not None and bool(_COMPARE[match[1]](value, float(match[2])))


def _finite(value: Any) -> Any:
    if isinstance(value, Mapping):
        return {str(key): _finite(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_finite(item) for item in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value
