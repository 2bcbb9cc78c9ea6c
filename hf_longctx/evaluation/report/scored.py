"""From finished cells of a suite to rows, averages, and effective lengths."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from ..effective import RULER_BAR, SHARE, effective_length, own_score, weighted_averages
from ..results import row

At = tuple[str, int, float | None]  # task, length, depth
# {configuration: {at: cell}}; a cell that ran out of memory is None
Cells = Mapping[str, Mapping[At, Mapping[str, Any] | None]]
UNIT = "points of 100"
AVERAGE = "average"


def rows(cells: Cells, window: int) -> list[dict[str, Any]]:
    """One row a task, length and depth; then averages over several tasks, and effective lengths over several lengths.

    The last configuration's score is the row's value, the others' are beside it.
    """
    *others, main = cells
    found = []
    for at in cells[main]:
        task, length, depth = at
        there = {name: cells[name][at] for name in cells}
        done = {name: cell for name, cell in there.items() if cell}
        share = {name: _percent(done[name]["score"]) if name in done else None for name in cells}
        why = "out of memory" if main not in done else None if share[main] is not None else "for a judge to score"
        where = f"{length:,} tokens" + ("" if depth is None else f", depth {depth:g}")
        detail = {
            "task": task, "length": length, **({} if depth is None else {"depth": depth}),
            "samples": {name: len(cell["scores"]) for name, cell in done.items()},
            "scores": {name: cell["scores"] for name, cell in done.items()},
            "seconds": {name: cell["seconds"] for name, cell in done.items()},
            "peak_gib": {name: cell["peak_gib"] for name, cell in done.items()},
            **({"groups": {name: cell["groups"] for name, cell in done.items()}} if any(
                cell["groups"] for cell in done.values()) else {}),
        }  # fmt: skip
        beside = {name: share[name] for name in others}
        found.append(row(f"{task}, {where}, {main}", share[main], UNIT, why=why, beside=beside, detail=detail))
    means = averages(cells)
    tasks = list(dict.fromkeys(task for task, _, _ in cells[main]))
    lengths = sorted({length for _, length, _ in cells[main]})
    if len(tasks) > 1:
        for length in lengths:
            value = {name: means[name].get(length) for name in cells}
            detail = {"task": AVERAGE, "at_length": length, "tasks": tasks}
            what = f"average of {len(tasks)} tasks, {length:,} tokens, {main}"
            why = None if value[main] is not None else "a task has no score"
            found.append(
                row(what, value[main], UNIT, why=why, beside={name: value[name] for name in others}, detail=detail)
            )
    return [*found, *(_effective(means, window) if len(lengths) > 1 else [])]


def averages(cells: Cells) -> dict[str, dict[int, float]]:
    """{configuration: {length: mean over tasks and depths, of 100}}, for lengths at which every task has a score."""
    found: dict[str, dict[int, float]] = {}
    for name, many in cells.items():
        by_length: dict[int, list[float | None]] = {}
        for (_, length, _), cell in many.items():
            by_length.setdefault(length, []).append(_percent(cell["score"]) if cell else None)
        found[name] = {n: sum(v) / len(v) for n, v in by_length.items() if None not in v}  # type: ignore[arg-type]
    return found


def _effective(means: Mapping[str, Mapping[int, float]], window: int) -> list[dict[str, Any]]:
    *others, main = means
    # the model itself is the measure where it was measured
    first = next(iter(means))
    own = own_score(means[first], window)
    bars = [(f"effective length, average of at least {RULER_BAR}", RULER_BAR, {"bar": RULER_BAR})]
    if own is not None and own[1] > 0:  # a share of nothing is reached everywhere
        at, base = own
        what = f"effective length, at least {SHARE:.0%} of the {base:.1f} of {first} at {at:,} tokens"
        bars.append((what, SHARE * base, {"bar": SHARE * base, "own": base, "own_length": at}))
    found = []
    for what, bar, detail in bars:
        value = {name: effective_length(many, bar) for name, many in means.items()}
        why = None if value[main] is not None else "not reached at the shortest length"
        rising = {name: list(weighted_averages(many)) for name, many in means.items() if many}
        beside = {name: value[name] for name in others}
        found.append(
            row(f"{what}, {main}", value[main], "tokens", why=why, beside=beside,
                detail={**detail, "averages": {name: dict(many) for name, many in means.items()},
                        "weighted_rising_falling": rising})
        )  # fmt: skip
    return found


def _percent(score: float | None) -> float | None:
    return None if score is None else round(100 * score, 2)
