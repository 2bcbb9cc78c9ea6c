"""A report on the page and in the terminal."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from rich.console import Group
from rich.table import Table as RichTable
from rich.text import Text as RichText

from ...upstream.installing import Package, check_packages, install_extra
from ..results import package_version
from . import plots
from .files import LeftOut, ResultFile
from .sections import HeatMap, Section, Table, Text, glance
from .svg import inline_svg

_SHOWN = ("anchor", "title", "model", "about", "tables", "grids", "more", "notes")
JINJA2 = Package("the page is made by jinja2", ("jinja2", "markupsafe"), install_extra("evaluation"))
TEMPLATE = Path(__file__).with_name("page.html.j2")


def page(found: Sequence[Section], left: Sequence[LeftOut], title: str) -> str:
    """The report as one HTML page that loads nothing: no script, no font, no picture from anywhere.

    Raises:
        ImportError: matplotlib or jinja2 is not installed.
    """
    check_packages([plots.MATPLOTLIB, JINJA2])
    from jinja2 import Environment, StrictUndefined
    from markupsafe import Markup

    # Everything that comes from a file is escaped; matplotlib escapes the labels of figures.
    environment = Environment(autoescape=True, undefined=StrictUndefined, trim_blocks=False)
    drawn = [
        {
            **{key: getattr(section, key) for key in _SHOWN},
            "cut": any(grid.window is not None for grid in section.grids),
            "figures": [
                (Markup(inline_svg(chart.draw(), chart.name, chart.alt)), chart.title)
                for chart in section.charts
                if chart.on_page
            ],
            "files": [_conditions(file) for file in section.files],
        }
        for section in found
    ]
    count = sum(len(section.files) for section in found)
    return environment.from_string(TEMPLATE.read_text(encoding="utf-8")).render(
        title=title,
        version=package_version(),
        count=f"{count} result file" + ("" if count == 1 else "s"),
        colours=plots.GRID_COLOURS,
        glance=glance(found),
        sections=drawn,
        damaged=[file for file in left if file.damaged],
        foreign=[file for file in left if not file.damaged],
    )


def terminal(found: Sequence[Section], left: Sequence[LeftOut]) -> Group:
    """The report's tables for a rich console, with what was left out below them."""
    parts: list[Any] = []
    for section in found:
        shown = [_rich(table) for table in section.tables]
        shown += [_rich(_as_table(grid)) for grid in section.grids if grid.rows == "task"]
        parts += [RichText(f"\n{section.title}: {section.model}", style="bold"), *shown]
        parts += [RichText(f"- {note}") for note in section.notes]
    damaged = [file for file in left if file.damaged]
    parts += [RichText(f"Not shown: {file.name} {file.why}", style="yellow") for file in damaged]
    if foreign := len(left) - len(damaged):
        files = "file is" if foreign == 1 else "files are"
        parts.append(RichText(f"{foreign} other JSON {files} not shown.", style="dim"))
    return Group(*parts)


def _conditions(file: ResultFile) -> list[tuple[str, str]]:
    data = file.data
    versions = ", ".join(f"{name} {version}" for name, version in data["versions"].items())
    told = {"file": file.name, "command": data["command"], "hardware": data["hardware"], "versions": versions}
    told |= {"date": data["date"], "commit": data["commit"]}
    settings = data.get("settings")
    if isinstance(settings, dict) and isinstance(settings.get("method_repr"), str):
        told["method"] = settings["method_repr"]
    return list(told.items())


def _as_table(grid: HeatMap) -> Table:
    lines = [[Text(row), *cells] for row, cells in grid.lines]
    return Table(f"{grid.caption}, % found", [grid.rows, *grid.columns], lines)


def _rich(table: Table) -> RichTable:
    # Text, not strings: a name with brackets would be read as markup.
    drawn = RichTable(title=RichText(table.caption), title_justify="left")
    for index, name in enumerate(table.head):
        drawn.add_column(RichText(name), justify="right" if index else "left", overflow="fold")
    for line in table.lines:
        drawn.add_row(*(RichText.assemble(cell.text, ("\n" + cell.note if cell.note else "", "dim")) for cell in line))
    return drawn
