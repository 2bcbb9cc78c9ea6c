"""From a folder of result files to a page, its figures and what the terminal says."""

from __future__ import annotations

from pathlib import Path

from rich.console import Console

from ...storage.files import check_folder, write_whole
from . import plots
from .files import collect
from .render import page, terminal
from .sections import sections

PAGE = "report.html"


def write_report(
    folder: str | Path, out: str | Path | None = None, *, title: str | None = None, console: Console | None = None
) -> Path:
    """Write the page, print the tables, and return the page's path.

    Args:
        folder: Where the result files are, at any depth; or one result file.
        out: Folder for `report.html` and every figure as PNG and SVG; without it the page goes into `folder`, alone.
        title: Of the page; the folder's name by default.
        console: Where the tables go.

    Raises:
        FileNotFoundError: There is no such folder.
        ValueError: No result file is in it, or `out` is a file.
        ImportError: matplotlib or jinja2 is not installed.
        OSError: The page cannot be written.
    """
    source = Path(folder)
    if out is not None:
        check_folder(out)
    files, left = collect(source)
    found = sections(files)
    home = Path(out) if out is not None else source if source.is_dir() else source.parent
    named = source.resolve().parent if source.name == "results.json" else source.resolve()
    title = title or f"Long context: {named.name.removesuffix('.json')}"
    # Of a text with half a character, as JSON can have, a question mark is left.
    text = page(found, left, title).encode("utf-8", "replace")
    write_whole(home / PAGE, text)
    if out is not None:
        for chart in (chart for section in found for chart in section.charts):
            figure = chart.draw()
            for ending in ("png", "svg"):
                plots.save(figure, home / "figures" / f"{chart.name}.{ending}")
    if console is not None:
        console.print(terminal(found, left))
    return home / PAGE
