"""`hf-longctx hub check` and `hf-longctx hub repair`: what a saved or published model loads as."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from . import options
from .save import tell

app = typer.Typer(
    no_args_is_help=True, pretty_exceptions_enable=False, help="What a saved or published model loads as."
)


@app.command()
def check(
    model: Annotated[str, typer.Argument(help="A folder or a Hub id.", show_default=False)],
    revision: Annotated[str | None, typer.Option(help="A branch, tag or commit of a Hub id.")] = None,
) -> None:
    """Say what a model loads as, with hf_longctx and without, and what is wrong with it; exit code 1 if anything is."""
    from ..hub.check import check as run
    from ..hub.download import small_files

    with small_files(model, revision) as folder:
        report = run(folder)
    for method in report.methods:
        options.plain(method)
    tell(report)
    for problem in report.problems:
        options.complain(problem)
    if report.problems:
        raise typer.Exit(1)


@app.command()
def repair(folder: Annotated[Path, typer.Argument(help="The folder of a saved model.", show_default=False)]) -> None:
    """Mend a saved model whose `trust_remote_code=True` fails, such as one that was saved without hf_longctx."""
    from ..hub.check import repair as run

    done = run(folder)
    for line in done or ["nothing to repair"]:
        options.plain(line)
