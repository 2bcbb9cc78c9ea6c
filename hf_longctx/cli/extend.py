"""`hf-longctx extend`: a checkpoint that carries a method."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer

from . import options
from .options import Force, Model, Settings, chosen_of


def extend(
    model: Model,
    method: Annotated[str, typer.Option(help="A name from `hf-longctx methods`.", show_default=False)],
    out: Annotated[Path, typer.Option(help="Folder for the extended model.", show_default=False)],
    settings: Settings = None,
    force: Force = False,
) -> None:
    """Save a model so that plain from_pretrained loads it with the method active."""
    from ..hub import extend as run

    chosen = chosen_of(method, settings)
    assert chosen is not None
    folder = run(model, chosen, out, overwrite=force)
    plain: dict[str, Any] = {"markup": False, "highlight": False, "soft_wrap": True}  # to be copied, paths whole
    options.screen.print(f"Saved the model with {chosen!r} to {folder}.", **plain)
    configs = [file.read_text(encoding="utf-8") for file in folder.glob("*config.json")]  # or an adapter's
    keyed = any('"hf_longctx"' in text for text in configs)
    needed = "import hf_longctx; " if keyed else ""
    options.screen.print(f'Load it with: {needed}AutoModelForCausalLM.from_pretrained("{folder}")', **plain)
