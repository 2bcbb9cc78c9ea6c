"""What result files measured, put together: scores by task, configuration, length and depth.

A row of a result file is a cell when its `detail` has a `length`. It holds either all configurations (`value` is the
last of `settings["configurations"]`, `beside` the others; `hf-longctx eval` writes these) or one, named by
`detail["method"]`.
"""

from __future__ import annotations

import json
import math
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal, TypeGuard

from .files import ResultFile, is_number

Kind = Literal["perplexity", "share", "other"]
# Settings that may differ between runs that are put side by side.
_APART = ("method", "method_repr", "configurations", "seconds_making_samples")
_PERCENT = ("%", "percent", "points", "points of 100", "score of 100", "of 100")


@dataclass(frozen=True)
class Score:
    """One number, None where there is none, and what is known about it."""

    value: float | None
    why: str | None = None
    trials: float | None = None
    correct: float | None = None
    seconds: float | None = None
    peak_gib: float | None = None


# Task, unit, kind, and {(configuration, length, depth): score}.
_Found = tuple[str, str, Kind, dict[tuple[str, int, float | None], Score]]


@dataclass
class Measured:
    """The scores of one task.

    Args:
        task: Its name.
        unit: Of the scores as the file says; `kind` is what they are: a perplexity, a share (kept as 0 to 1), or other.
        scores: {(configuration, length in tokens, depth as 0 to 1 or None): score}.
    """

    task: str
    unit: str
    kind: Kind
    scores: dict[tuple[str, int, float | None], Score] = field(default_factory=dict)

    @property
    def configurations(self) -> list[str]:
        """Names of what was measured, in the order of the rows."""
        return list(dict.fromkeys(name for name, _, _ in self.scores))

    @property
    def lengths(self) -> list[int]:
        """Lengths in tokens, sorted."""
        return sorted({length for _, length, _ in self.scores})

    @property
    def depths(self) -> list[float]:
        """Depths, sorted."""
        return sorted({depth for _, _, depth in self.scores if depth is not None})

    def at(self, configuration: str, length: int) -> list[Score]:
        """The scores of a length, one for each depth, or one."""
        return [score for (name, n, _), score in self.scores.items() if (name, n) == (configuration, length)]

    def pooled(self, configuration: str, length: int) -> Score | None:
        """One score of a length: its mean over depths, counts, seconds added up; None where nothing was measured.

        A length with a depth that has no value has none either: the rest would be another grid's mean.
        """
        scores = self.at(configuration, length)
        if not scores:
            return None
        missing = [score for score in scores if score.value is None]
        values = [score.value for score in scores if score.value is not None]
        trials, correct = _total(s.trials for s in scores), _total(s.correct for s in scores)
        # By trials where they are known, as cells may have different numbers of them.
        counted = self.kind == "share" and trials and correct is not None
        mean = correct / trials if counted else sum(values) / max(len(values), 1)  # type: ignore[operator]
        peaks = [score.peak_gib for score in scores if score.peak_gib is not None]
        return Score(
            None if missing else mean,
            missing[0].why if missing else None,
            trials,
            correct,
            _total(s.seconds for s in scores),
            max(peaks, default=None),
        )

    def curve(self, configuration: str) -> dict[int, float | None]:
        """{length: pooled score}; lengths that were not measured are left out."""
        found = {length: self.pooled(configuration, length) for length in self.lengths}
        return {length: score.value for length, score in found.items() if score is not None}

    def grid(self, configuration: str) -> dict[tuple[int, float], float]:
        """{(length, depth): value}, for scores that have both."""
        return {
            (length, depth): score.value
            for (name, length, depth), score in self.scores.items()
            if name == configuration and depth is not None and score.value is not None
        }


def groups(files: Sequence[ResultFile]) -> list[list[ResultFile]]:
    """Files that measured the same thing, side by side: same model, task, text, seed and so on, another method."""
    found: dict[str, list[ResultFile]] = {}
    for file in files:
        settings = settings_of(file)
        shared = {key: value for key, value in settings.items() if key not in _APART}
        alone = file.name if not _strings(settings.get("configurations")) else ""
        key = json.dumps([alone, file.data["model"], shared], sort_keys=True, default=str)
        found.setdefault(key, []).append(file)
    return list(found.values())


def settings_of(file: ResultFile) -> dict[str, Any]:
    """What the run was asked for, empty in files that do not say."""
    settings = file.data.get("settings")
    return settings if isinstance(settings, dict) else {}


def measured(files: Sequence[ResultFile]) -> list[Measured]:
    """The tasks of a group, in the order of their first rows. A cell that two files have is the first file's."""
    tasks: dict[tuple[str, Kind], Measured] = {}
    for file in files:
        for _, cells in _rows(file, files):
            for task, unit, kind, scores in cells:
                kept = tasks.setdefault((task, kind), Measured(task, unit, kind))
                for key, score in scores.items():
                    kept.scores.setdefault(key, score)
    return list(tasks.values())


def plain_rows(file: ResultFile) -> list[dict[str, Any]]:
    """The rows that are no cells, and those with a bar, whose verdict a table of scores would not show."""
    rows = [(row, row.get("detail") or {}, cells) for row, cells in _rows(file, [file])]
    # A suite's own averages are the means of the tasks beside them.
    return [row for row, detail, cells in rows if row.get("bar") or not (cells or "at_length" in detail)]


def _rows(file: ResultFile, files: Sequence[ResultFile]) -> list[tuple[dict[str, Any], list[_Found]]]:
    """Every row with its cells. Rows that a cell could not tell apart are no cells, so that none is lost."""
    names = _names(file, files)
    rows = [(row, list(_cells(row, file, names))) for row in file.data["rows"]]
    seen = Counter((task, kind, key) for _, cells in rows for task, _, kind, scores in cells for key in scores)

    def alone(found: _Found) -> bool:
        task, _, kind, scores = found
        return all(seen[task, kind, key] == 1 for key in scores)

    return [(row, cells if all(map(alone, cells)) else []) for row, cells in rows]


def _names(file: ResultFile, files: Sequence[ResultFile]) -> dict[str, str]:
    """{configuration: what it is called here}: a method by its settings, where another file has it with others."""
    settings = settings_of(file)
    names = _strings(settings.get("configurations"))
    method, told = settings.get("method"), settings.get("method_repr")
    others = [settings_of(other) for other in files]
    rivals = [o for o in others if _strings(o.get("configurations"))[-1:] == names[-1:] and o.get("method") != method]
    called = {name: name for name in names}
    return {**called, names[-1]: told} if rivals and names and isinstance(told, str) else called


def _cells(row: Mapping[str, Any], file: ResultFile, names: dict[str, str]) -> Iterator[_Found]:
    """Task, unit, kind and scores of a row: of one length, of a configuration at many, or nothing if it is no cell."""
    detail = row.get("detail") or {}
    for task, unit in (("perplexity", "perplexity"), ("passkey", "share of trials")):
        series = detail.get(task)
        if _is_series(series):
            curve = {int(n): _finite(value) for n, value in series.items()}
            kind = _kind(unit, curve.values(), deep=False)
            why = {n: None if value is not None else "no value" for n, value in curve.items()}
            yield task, unit, kind, {(row["what"], n, None): Score(value, why[n]) for n, value in curve.items()}
    length, depth = detail.get("length"), detail.get("depth")
    if not isinstance(length, int) or not _length(length):
        return
    if depth is not None and not (is_number(depth) and 0 <= depth <= 1):
        return
    values = _values(row, list(names))
    unit = row["unit"] if isinstance(row.get("unit"), str) else ""
    kind = _kind(unit, values.values(), depth is not None)
    scale = 100 if kind == "share" and unit in _PERCENT else 1
    scores = {
        (names.get(name, name), length, None if depth is None else float(depth)): Score(
            None if value is None else value / scale,
            None if value is not None else _why(row, name, bool(names)),
            *_counts(detail, name),
            *(_of(detail.get(key), name) for key in ("seconds", "peak_gib")),
        )
        for name, value in values.items()
    }
    named = detail.get("task", settings_of(file).get("task"))
    yield named if isinstance(named, str) else "", unit, kind, scores


def _values(row: Mapping[str, Any], names: Sequence[str]) -> dict[str, float | None]:
    """{configuration: value} of a row, in the order of the file's configurations."""
    method = (row.get("detail") or {}).get("method")
    main = method if isinstance(method, str) else names[-1] if names else "hf_longctx"
    beside = {str(k): v for k, v in (row.get("beside") or {}).items() if v is None or is_number(v)}
    values = {**beside, main: row.get("value")}
    order = [*(name for name in names if name in values), *(name for name in values if name not in names)]
    return {name: _finite(values[name]) for name in order}


def _kind(unit: str, values: Any, deep: bool) -> Kind:
    known = [value for value in values if value is not None]
    if "perplexity" in unit.lower():
        return "perplexity" if all(value > 0 for value in known) else "other"
    if unit in _PERCENT:
        return "share" if all(0 <= value <= 100 for value in known) else "other"
    named = unit.lower().startswith(("share", "accuracy")) or "0 to 1" in unit or (deep and not unit)
    return "share" if named and all(0 <= value <= 1 for value in known) else "other"


def _why(row: Mapping[str, Any], name: str, evaluated: bool) -> str:
    """The reason of a missing value. `hf-longctx eval` leaves one out of its `beside` only for want of memory."""
    detail, told = row.get("detail") or {}, row.get("why")
    for key, reason in (("nll_per_document", "not finite"), ("scores", "no score")):
        if isinstance(detail.get(key), dict) and name in detail[key]:
            return reason
    if isinstance(told, str) and told and name not in (row.get("beside") or {}):
        return told
    return "out of memory" if evaluated else "not measured"


def _is_series(value: Any) -> TypeGuard[dict[str, float | None]]:
    """{length: number or None}, and not empty."""
    return (
        isinstance(value, dict)
        and bool(value)
        and all(_length(n) and (v is None or is_number(v)) for n, v in value.items())
    )


def _length(value: Any) -> bool:
    """A number of tokens, as such or as the key of a JSON object."""
    if isinstance(value, str) and value.isascii() and value.isdecimal() and len(value) <= 12:
        value = int(value)
    return isinstance(value, int) and not isinstance(value, bool) and 0 < value < 10**12


def _counts(detail: Mapping[str, Any], name: str) -> tuple[float | None, float | None]:
    """Trials and how many were right, as told or from each sample's score, if these are all 0 or 1."""
    scores = detail["scores"].get(name) if isinstance(detail.get("scores"), dict) else None
    if isinstance(scores, list):
        scores = [score for score in scores if score is not None]  # those for a judge
    if scores and all(is_number(score) and score in (0, 1) for score in scores):
        return float(len(scores)), float(sum(scores))
    return _of(detail.get("trials"), name), _of(detail.get("correct"), name)


def _of(value: Any, name: str) -> float | None:
    """A number for a configuration: of a mapping by configuration, or the row's only one."""
    value = value.get(name) if isinstance(value, dict) else value
    return _finite(value) if is_number(value) else None


def _finite(value: Any) -> float | None:
    try:
        return float(value) if value is not None and math.isfinite(value) else None
    except OverflowError:
        return None


def _total(values: Iterator[float | None]) -> float | None:
    known = list(values)
    return None if None in known else sum(value for value in known if value is not None)


def _strings(value: Any) -> list[str]:
    return value if isinstance(value, list) and all(isinstance(item, str) for item in value) else []
