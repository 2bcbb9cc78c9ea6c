"""`hf-longctx extend`: a checkpoint that carries a method."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from . import options
from .options import Force, Model, Settings, chosen_of
from .save import Plugin


def extend(
    model: Model,
    method: Annotated[str, typer.Option(help="A name from `hf-longctx methods`.", show_default=False)],
    out: Annotated[Path, typer.Option(help="Folder for the extended model.", show_default=False)],
    settings: Settings = None,
    plugin: Plugin = False,
    force: Force = False,
) -> None:
    """Save a model so that plain from_pretrained loads it with the method active."""
    from ..hub import extend as run
    from ..hub.tiers import entry_of

    chosen = chosen_of(method, settings)
    assert chosen is not None
    folder = run(model, chosen, out, overwrite=force, plugin=plugin)
    options.plain(f"Saved the model with {chosen!r} to {folder}.")
    needed = "" if entry_of(folder) is None else "import hf_longctx; "
    options.plain(f'Load it with: {needed}AutoModelForCausalLM.from_pretrained("{folder}")')
