"""`hf-longctx report`: what was measured, on one page."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console


def report(
    folder: Annotated[
        Path,
        typer.Argument(metavar="DIR", help="Where `eval` wrote to, or a folder of such.", show_default=False),
    ],
    out: Annotated[
        Path | None, typer.Option(help="Folder for the page and every figure as PNG and SVG; else the page is in DIR.")
    ] = None,
    title: Annotated[str | None, typer.Option(help="Of the page.")] = None,
) -> None:
    """Tables, curves and heat-maps of everything measured in a folder, as one HTML page that loads nothing."""
    from ..evaluation.report.write import write_report

    console = Console()
    path = write_report(folder, out, title=title, console=console)
    console.print(f"Page: {path}", markup=False, highlight=False, soft_wrap=True)
