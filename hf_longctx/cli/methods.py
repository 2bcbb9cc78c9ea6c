"""`hf-longctx methods`: what there is to choose from."""

from __future__ import annotations

import json
from typing import Annotated

import typer
from rich.table import Table
from rich.text import Text

from . import options


def list_methods(
    as_json: Annotated[bool, typer.Option("--json", help="Everything about them, for programs.")] = False,
) -> None:
    """List the methods there are: when to use each, what it cannot do, what it costs."""
    from ..registry import entries

    found = entries().values()
    if as_json:
        typer.echo(json.dumps(list(found), indent=2))
        return
    for entry in found:
        given = {key: value["default"] for key, value in entry["settings"].items()}
        settings = ", ".join(key if default is None else f"{key}={default}" for key, default in given.items())
        lines = {"Does": entry["summary"], **entry["guidance"], "Settings": settings, "Paper": entry["paper"]}
        table = Table(box=None, show_header=False)
        table.add_column()
        table.add_column(overflow="fold")  # an address is not cut on a narrow terminal
        for label, text in lines.items():
            if text:
                table.add_row(label, Text(text))
        options.screen.print(f"[bold]{entry['name']}[/bold]  hf_longctx.{entry['class']}", highlight=False)
        options.screen.print(table)
        options.screen.print()
