"""From finished cells of a suite to rows, averages, and effective lengths."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from ..effective import RULER_BAR, SHARE, effective_length, own_score, weighted_averages
from ..rows import compared

At = tuple[str, int, float | None]  # task, length, depth
# {configuration: {at: cell}}; a cell that ran out of memory is None
Cells = Mapping[str, Mapping[At, Mapping[str, Any] | None]]
UNIT = "points of 100"


def rows(cells: Cells, window: int) -> list[dict[str, Any]]:
    """One row per task, length and depth; then averages of several tasks, and effective lengths of several lengths."""
    main = list(cells)[-1]
    found = []
    for at in cells[main]:
        task, length, depth = at
        done = {name: cell for name, many in cells.items() if (cell := many[at])}
        where = f"{length:,} tokens" + ("" if depth is None else f", depth {depth:g}")
        detail = {"task": task, "length": length, **({} if depth is None else {"depth": depth})}
        detail["samples"] = {name: len(cell["scores"]) for name, cell in done.items()}
        for key in ("scores", "seconds", "peak_gib", "groups"):
            values = {name: cell[key] for name, cell in done.items()}
            if key != "groups" or any(values.values()):
                detail[key] = values
        share = {name: _percent(many[at]) for name, many in cells.items()}
        why = "for a judge to score" if main in done else "out of memory"
        found.append(compared(f"{task}, {where}", share, UNIT, why=why, detail=detail))
    means = averages(cells)
    tasks = list(dict.fromkeys(task for task, _, _ in cells[main]))
    lengths = sorted({length for _, length, _ in cells[main]})
    for length in lengths if len(tasks) > 1 else ():
        value = {name: means[name].get(length) for name in cells}
        detail = {"task": "average", "at_length": length, "tasks": tasks}
        what = f"average of {len(tasks)} tasks, {length:,} tokens"
        found.append(compared(what, value, UNIT, why="a task has no score", detail=detail))
    return [*found, *(_effective(means, window) if len(lengths) > 1 else [])]


def averages(cells: Cells) -> dict[str, dict[int, float]]:
    """{configuration: {length: mean over tasks and depths, of 100}}, for lengths at which every task has a score."""
    found: dict[str, dict[int, float]] = {}
    for name, many in cells.items():
        by_length: dict[int, list[float | None]] = {}
        for (_, length, _), cell in many.items():
            by_length.setdefault(length, []).append(_percent(cell))
        found[name] = {n: sum(v) / len(v) for n, v in by_length.items() if None not in v}  # type: ignore[arg-type]
    return found


def _effective(means: Mapping[str, Mapping[int, float]], window: int) -> list[dict[str, Any]]:
    # the model itself is the measure where it was measured
    first = next(iter(means))
    own = own_score(means[first], window)
    bars = [(f"effective length, average of at least {RULER_BAR}", {"bar": RULER_BAR})]
    if own is not None and own[1] > 0:  # a share of nothing is reached everywhere
        at, base = own
        what = f"effective length, at least {SHARE:.0%} of the {base:.1f} of {first} at {at:,} tokens"
        bars.append((what, {"bar": SHARE * base, "own": base, "own_length": at}))
    whole = {
        "averages": {name: dict(many) for name, many in means.items()},
        "weighted_rising_falling": {name: list(weighted_averages(many)) for name, many in means.items() if many},
    }
    found = []
    for what, detail in bars:
        value = {name: effective_length(many, detail["bar"]) for name, many in means.items()}
        why = "not reached at the shortest length"
        found.append(compared(what, value, "tokens", why=why, detail={**detail, **whole}))
    return found


def _percent(cell: Mapping[str, Any] | None) -> float | None:
    return None if cell is None or cell["score"] is None else round(100 * cell["score"], 2)
