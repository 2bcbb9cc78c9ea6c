"""`hf-longctx card`: README.md of a saved model, from its config and from result files."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from . import options
from .save import BaseModel, License, Results


def card(
    folder: Annotated[Path, typer.Argument(metavar="DIR", help="The folder of a saved model.", show_default=False)],
    results: Results = None,
    base_model: BaseModel = None,
    license: License = None,
    language: Annotated[
        list[str] | None, typer.Option(help="A language of the model, such as en; by default those of the base.")
    ] = None,
    repo_id: Annotated[
        str | None, typer.Option(metavar="OWNER/NAME", help="What the card's commands name; by default the folder.")
    ] = None,
    force: Annotated[bool, typer.Option("--force", help="Replace a card that somebody wrote or edited.")] = False,
) -> None:
    """Write the card of a saved model: how it is loaded, what was measured, and its limits."""
    from ..hub.card import write_card
    from ..hub.check import check
    from ..hub.upload import check_names, check_owner

    if repo_id is not None:
        check_names(repo_id)
        check_owner(repo_id, "so that the commands in the card would not find it on the Hub")
    report = check(folder)
    if report.problems:
        raise ValueError(report.problems[0])
    written = write_card(
        folder,
        repo_id,
        base_model=base_model,
        license=license,
        language=language or (),
        results=results or (),
        overwrite=force,
    )
    if written is None:
        raise ValueError(
            f"{folder / 'README.md'} was written or edited by somebody, and stays. Keep a copy of it, and replace it "
            f"with --force."
        )
    options.plain(f"Wrote {written.card}.")
    for file in written.files:
        options.plain(f"  with {folder / file}")
    if not written.files:
        options.plain("Note: it has no results. `hf-longctx eval` measures, and --results FILE shows them.")
    missing = {"--base-model": written.facts.base_model, "--license": written.facts.license}
    for option, value in missing.items():
        if not value:
            options.plain(f"Note: the Hub is not told the model's {option[2:].replace('-', ' ')}. Give {option}.")
