"""`hf-longctx doctor`: what works here and what does not."""

from __future__ import annotations

from typing import Annotated

import typer

from . import options


def doctor(
    model: Annotated[
        str | None, typer.Argument(help="A folder or a Hub id to look at as well.", show_default=False)
    ] = None,
) -> None:
    """Say what works here and what does not, to be pasted into a report; exit code 1 if anything is wrong."""
    from ..doctor import examine

    wrong = 0
    for found in examine(model):
        wrong += found.wrong
        options.plain(f"{found.topic:<22} {'WRONG: ' if found.wrong else ''}{found.text}")
    options.plain("Nothing above names a folder or shows a token: it can be pasted into a report.")
    if wrong:
        raise typer.Exit(1)
