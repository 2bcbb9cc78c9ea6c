"""`hf-longctx save`: a model with its tokenizer and card in a folder, as `push` would publish it."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from . import options
from .options import Force, MethodName, Model, Settings, chosen_of

if TYPE_CHECKING:
    from ..hub.check import Report
    from ..hub.draft import Draft

Plugin = Annotated[
    bool, typer.Option("--plugin", help="No code in it: only readers who import hf_longctx get the extended model.")
]
BaseModel = Annotated[str | None, typer.Option(help="Hub id of the model that it was made from, for the card.")]
License = Annotated[str | None, typer.Option(help="The Hub's name of its licence; by default that of the base.")]
Results = Annotated[
    list[Path] | None,
    typer.Option("--results", help="For the card: a result file of eval or recipes/benchmarks, or a folder of them."),
]


def save(
    model: Model,
    out: Annotated[Path, typer.Option(help="Folder for the model.", show_default=False)],
    method: MethodName = None,
    settings: Settings = None,
    plugin: Plugin = False,
    base_model: BaseModel = None,
    results: Results = None,
    force: Force = False,
) -> None:
    """Save a model with its tokenizer and a card, as `push` would publish it."""
    chosen = chosen_of(method, settings)
    from ..hub.draft import save_for_hub

    made_of: dict[str, Any] = {"method": chosen, "plugin": plugin, "base_model": base_model, "results": results or ()}
    with options.steps_told():
        draft = save_for_hub(model, out, overwrite=force, **made_of)
    options.plain(f"Saved to {draft.folder}.")
    tell(draft)


def tell(found: Draft | Report) -> None:
    """What a reader gets, and what a reader should know."""
    options.plain(f"Tier: {found.tier.name}.")
    for where, what in found.tier.loads:
        options.plain(f"  {where}: {what}")
    for note in found.notes:
        options.plain(f"Note: {note}")
