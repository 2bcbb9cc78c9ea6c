"""What a report says, as text, tables, grids and charts, for the terminal and the page alike."""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

from ..passkey import wilson_interval
from . import plots
from .files import ResultFile, is_number
from .measured import Measured, Score, groups, measured, plain_rows, settings_of
from .rows import number, reasons, row_lines

TITLES = {"ppl": "Perplexity", "perplexity": "Perplexity", "passkey": "Passkey retrieval"}
AT_A_GLANCE = 6  # configurations of a task
_WIDTH = 5.8  # inches: readable on a phone without enlarging


@dataclass(frozen=True)
class Text:
    """A cell of a table: the figure, small print below it, and, in a grid, its colour and its hint."""

    text: str
    note: str = ""
    colour: str | None = None
    hint: str = ""


@dataclass(frozen=True)
class Table:
    """A table whose first column names its lines."""

    caption: str
    head: list[str]
    lines: list[list[Text]]


@dataclass(frozen=True)
class HeatMap:
    """A heat-map: shares found in percent. `window` is the number of columns that lie in the trained window."""

    caption: str
    rows: str
    columns: list[str]
    lines: list[tuple[str, list[Text]]]
    window: int | None = None


@dataclass(frozen=True)
class Chart:
    """A figure, drawn when it is asked for. `name` is that of its file, `alt` what it shows in words."""

    name: str
    title: str
    alt: str
    draw: Callable[[], Any]
    on_page: bool = True


@dataclass
class Section:
    """One measurement, of one or more files."""

    anchor: str
    title: str
    model: str
    about: str = ""
    files: list[ResultFile] = field(default_factory=list)
    tables: list[Table] = field(default_factory=list)
    grids: list[HeatMap] = field(default_factory=list)
    charts: list[Chart] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)
    more: list[Table | HeatMap] = field(default_factory=list)  # of single tasks, where a section has many
    measured: list[Measured] = field(default_factory=list)
    window: int | None = None


def sections(files: Sequence[ResultFile]) -> list[Section]:
    """One section for every measurement; files that measured the same with other methods share one.

    Those with scores by length come first, then rows of other kinds.
    """
    found = [_section(group, f"s{i}") for i, group in enumerate(groups(files), start=1)]
    for section in found:
        marks = [task for task in section.measured if task.kind == "share"]
        if len(marks) > 1:
            _add_tasks(section, marks)
        for task in section.measured:
            if len(marks) < 2 or task not in marks:
                section.tables.append(_table(task, section))
                section.grids += _grids(task, section)
                section.charts += _charts(task, section, f"{section.anchor}-{_slug(_title(task, section))}")
        _add_rows(section)
    titles = [section.title for section in found]
    for section in found:
        if titles.count(section.title) > 1:
            section.title += f" ({section.files[0].name.removesuffix('.json').removesuffix('/results')})"
    return sorted(found, key=lambda section: not section.measured)


def glance(found: Sequence[Section]) -> Table | None:
    """Every configuration near, where a model should read well, and far: how far does it really read?

    Of many tasks the mean; nothing of sections whose many configurations are a comparison of their own.
    """
    lines = []
    for section in found:
        marks = [task for task in section.measured if task.kind == "share"]
        rest = [task for task in section.measured if task.kind != "share"]
        for task in [*([_mean_of(marks)] if len(marks) > 1 else marks), *rest]:
            if len(task.configurations) > AT_A_GLANCE:
                continue
            inside = [n for n in task.lengths if n <= (section.window or 0)]
            ends = (inside or task.lengths)[-1 if inside else 0], task.lengths[-1]
            for name in task.configurations:
                scores = [_score(task, task.pooled(name, n), n) for n in ends]
                lines.append([Text(name, _title(task, section)), *scores])
    caption = "Near: the longest length in the trained window, else the shortest. Far: the longest that was measured."
    return Table(caption, ["configuration, task", "near", "far"], lines) if lines else None


def _section(group: list[ResultFile], anchor: str) -> Section:
    first = group[0]
    tasks = measured(group)
    section = Section(anchor, "", first.data["model"], files=group, measured=tasks)
    settings = settings_of(first)
    window = settings.get("window")
    section.window = window if isinstance(window, int) and window > 0 else None
    names = list(dict.fromkeys(_title(task, section) for task in tasks))
    section.title = first.name.removesuffix(".json") if not tasks else names[0] if len(names) == 1 else ", ".join(names)
    if len(section.title) > 80:
        section.title = f"{len(names)} tasks"
    section.about = _about(settings)
    return section


def _about(settings: dict[str, Any]) -> str:
    said = {
        "window": "trained window {:,} tokens",
        "text": "text {}",
        "documents": "{:,} documents",
        "n_targets": "the last {:,} tokens are scored",
        "trials": "{:,} trials per cell",
        "seed": "seed {}",
    }
    parts = []
    for key, words in said.items():
        value = settings.get(key)
        if (isinstance(value, str) and key == "text") or is_number(value):
            parts.append(words.format(value))
    return "; ".join(parts)


def _title(task: Measured, section: Section) -> str:
    return TITLES.get(task.task, task.task.replace("_", " ") or section.files[0].name.removesuffix(".json"))


def _table(task: Measured, section: Section) -> Table:
    names, lengths = task.configurations, task.lengths
    texts = {(c, n): _score(task, task.pooled(c, n)) for c in names for n in lengths}
    unit = {"perplexity": ", lower is better", "share": ": found, all depths" if task.depths else ": score"}
    counted = task.kind == "share" and any(_interval(score) for score in task.scores.values())
    interval = " (95 % interval)" if counted else ""
    caption = f"{_title(task, section)}{unit.get(task.kind, ': ' + (task.unit or 'value'))}{interval}"
    if len(names) > AT_A_GLANCE:  # more names than fit side by side
        lines = [[Text(c), *(texts[c, n] for n in lengths)] for c in names]
        return Table(caption, ["tokens read", *(f"{n:,}" for n in lengths)], lines)
    lines = [[Text(f"{n:,}"), *(texts[c, n] for c in names)] for n in lengths]
    return Table(caption, ["tokens read", *names], lines)


def _charts(task: Measured, section: Section, name: str) -> list[Chart]:
    title, found = _title(task, section), []
    curves = {c: task.curve(c) for c in task.configurations}
    drawable = any(value is not None for curve in curves.values() for value in curve.values())
    if drawable and task.kind != "other":
        share = task.kind == "share"
        size = (_WIDTH, 3.8 + 0.16 * max(0, len(curves) - 5))
        shown = f"{title}{'' if task.kind == 'perplexity' else ': share found'} by context length"
        alt = f"{shown}. {_told(task)}"
        found.append(
            Chart(
                f"{name}-curve",
                shown,
                alt,
                lambda: plots.curve_figure(curves, share=share, window=section.window, size=size),
            )
        )
    grids = {c: cells for c in task.configurations if (cells := task.grid(c))}
    if task.kind == "share" and grids:
        subtitle = f"{section.model}; {section.about}".rstrip("; ")
        hidden = "key" if task.task == "passkey" else "needle"
        shown = f"{title}: share found by length and depth"

        def heat_map() -> Any:
            return plots.passkey_figure(grids, window=section.window, title=title, subtitle=subtitle, hidden=hidden)

        # The page has the grids as tables.
        found.append(Chart(f"{name}-grid", shown, shown, heat_map, on_page=False))
    return found


def _add_tasks(section: Section, tasks: list[Measured]) -> None:
    """Many tasks: their mean, a grid of tasks and lengths for every configuration, and the single tasks below."""
    mean = _mean_of(tasks)
    section.tables.append(_table(mean, section))
    section.charts += _charts(mean, section, f"{section.anchor}-mean")
    for name in mean.configurations:
        lines = [
            (_title(task, section), [_shade(task.pooled(name, n), f"{n:,} tokens") for n in mean.lengths])
            for task in (*tasks, mean)
        ]
        columns = [plots.tokens(n) for n in mean.lengths]
        section.grids.append(HeatMap(name, "task", columns, lines, _inside(mean.lengths, section.window)))
    for task in tasks:
        section.more += [_table(task, section), *_grids(task, section)]
        charts = _charts(task, section, f"{section.anchor}-{_slug(_title(task, section))}")
        section.charts += [replace(chart, on_page=False) for chart in charts]


def _mean_of(tasks: Sequence[Measured]) -> Measured:
    """The mean of tasks at every length; none where a task has no score, as the rest would be another mean."""
    mean = Measured(f"mean of {len(tasks)} tasks", "mean score, 0 to 1", "share")
    for name in dict.fromkeys(c for task in tasks for c in task.configurations):
        for length in sorted({n for task in tasks for n in task.lengths}):
            scores = [task.pooled(name, length) or Score(None, "not measured") for task in tasks]
            values = [score.value for score in scores if score.value is not None]
            whys = [score.why for score in scores if score.value is None]
            mean.scores[name, length, None] = Score(None, whys[0]) if whys else Score(sum(values) / len(values))
    return mean


def _add_rows(section: Section) -> None:
    for file in section.files:
        rows = plain_rows(file)
        if rows:
            head, *lines = row_lines(file.data, rows)
            section.tables.append(Table(file.name, head, [[Text(text) for text in line] for line in lines]))
            section.notes += reasons(rows)


def _grids(task: Measured, section: Section) -> list[HeatMap]:
    """Depth by length, one grid a configuration."""
    if task.kind != "share" or not task.depths:
        return []
    found = []
    for name in task.configurations:
        lines = []
        for depth in task.depths:
            at = f"depth {100 * depth:.3g} %"
            cells = [_shade(task.scores.get((name, n, depth)), f"{n:,} tokens, {at}") for n in task.lengths]
            lines.append((f"{100 * depth:.3g} %", cells))
        title = name if len(section.measured) == 1 else f"{_title(task, section)}: {name}"
        columns = [plots.tokens(n) for n in task.lengths]
        found.append(HeatMap(title, "depth", columns, lines, _inside(task.lengths, section.window)))
    return found


def _shade(score: Score | None, where: str) -> Text:
    if score is None or score.value is None:
        return Text("–", hint=f"{where}: {score.why if score and score.why else 'not measured'}")
    counted = _counted(score)
    hint = f"{where}: {100 * score.value:.0f} %" + (f", {counted}" if counted else "")
    return Text(f"{100 * score.value:.0f}", colour=plots.grid_colour(score.value), hint=hint)


def _score(task: Measured, score: Score | None, length: int | None = None) -> Text:
    """A score with its cost below it, or with the length where the table does not say it."""
    at = f"{plots.tokens(length)} tokens" if length is not None else ""
    if score is None:
        return Text("–", at or "not measured")
    notes = [at] if at else []
    if score.value is None:
        return Text("–", ", ".join([*notes, score.why or "no value"]))
    if at == "" and score.seconds:
        notes.append(f"{score.seconds:,.1f} s" + (f", {score.peak_gib:.1f} GiB" if score.peak_gib else ""))
    return Text(_value(task, score), ", ".join(notes))


def _value(task: Measured, score: Score) -> str:
    assert score.value is not None
    if task.kind == "share":
        interval = _interval(score)
        between = f" ({100 * interval[0]:.0f}–{100 * interval[1]:.0f})" if interval else ""
        return f"{100 * score.value:.0f} %{between}"
    if task.kind == "perplexity":
        return f"{score.value:,.4g}" if score.value < 1e4 else f"{score.value:,.0f}"
    return number(score.value, task.unit)


def _interval(score: Score) -> tuple[float, float] | None:
    """Of counts of trials; a mean of marks between 0 and 1 has no such interval."""
    trials, correct = score.trials, score.correct
    if trials is None or correct is None or trials < 1 or not 0 <= correct <= trials:
        return None
    whole = trials == int(trials) and correct == int(correct)
    return wilson_interval(int(correct), int(trials)) if whole else None


def _counted(score: Score) -> str:
    if score.trials is None or score.correct is None:
        return ""
    return f"{score.correct:g} of {score.trials:g}"


def _told(task: Measured) -> str:
    """A chart in words, for those who do not see it."""
    parts = []
    for name in task.configurations:
        curve = [(n, v) for n, v in task.curve(name).items() if v is not None]
        if curve:
            (a, first), (b, last) = curve[0], curve[-1]
            ends = [_value(task, Score(v)) for v in (first, last)]
            parts.append(f"{name}: {ends[0]} at {a:,} tokens" + (f", {ends[1]} at {b:,}" if b != a else ""))
    return "; ".join(parts) + "."


def _inside(lengths: Sequence[int], window: int | None) -> int | None:
    inside = sum(n <= window for n in lengths) if window is not None else 0
    return inside if 0 < inside < len(lengths) else None


def _slug(text: str) -> str:
    """A part of a file's name."""
    return re.sub(r"[^a-z0-9]+", "-", text.lower()).strip("-")[:40] or "task"
