"""`hf-longctx clip`: stretch a model's text positions, or convert published Long-CLIP weights."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from .options import Force

app = typer.Typer(no_args_is_help=True, help="Long text in CLIP: stretch a model, convert Long-CLIP's weights.")

Out = Annotated[Path, typer.Option(help="Folder for the checkpoint.", show_default=False)]
Keep = Annotated[int, typer.Option(help="Positions from the first that stay as they are.")]


@app.command()
def stretch(
    model: Annotated[
        str, typer.Argument(help="A folder or Hub id: CLIP, SigLIP, a text decoder, or OpenCLIP.", show_default=False)
    ],
    out: Out,
    keep: Keep = 20,
    ratio: Annotated[int, typer.Option(help="How many positions each of the others becomes.")] = 4,
    force: Force = False,
) -> None:
    """Save a model that reads longer text: 248 tokens instead of CLIP's 77. Plain transformers loads it."""
    import warnings

    from ..clip import stretch_checkpoint

    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        folder = stretch_checkpoint(model, out, keep, ratio, overwrite=force)
    for warning in caught:
        if issubclass(warning.category, UserWarning):
            typer.echo(f"Warning: {warning.message}", err=True)
    typer.echo(f"Saved the stretched model to {folder}.")


@app.command()
def convert(
    file: Annotated[
        str,
        typer.Argument(help="Long-CLIP's .pt or .safetensors, or a conversion's folder or Hub id.", show_default=False),
    ],
    out: Out,
    keep: Keep = 20,
    tokenizer: Annotated[
        str | None, typer.Option(help="A folder or Hub id with CLIP's tokenizer, to save with the model.")
    ] = None,
    activation: Annotated[
        str | None, typer.Option(help="quick_gelu or gelu; by default what a config says, or OpenAI's, quick_gelu.")
    ] = None,
    heads: Annotated[
        str | None,
        typer.Option(help="Attention heads, text and image: 16,16. By default what a config or the model's size says."),
    ] = None,
    allow_interpolated: Annotated[
        bool, typer.Option("--allow-interpolated", help="Take a table whose trained rows were lost.")
    ] = False,
    force: Force = False,
) -> None:
    """Save Long-CLIP's weights as a CLIP that plain transformers loads, held against the original's forward."""
    from ..clip import convert as run

    folder = run(
        file, out, keep=keep, tokenizer=tokenizer, activation=activation, heads=_heads(heads),
        allow_interpolated=allow_interpolated, overwrite=force,
    )  # fmt: skip
    typer.echo(f"Saved the converted model to {folder}.")


def _heads(text: str | None) -> tuple[int, int] | None:
    if text is None:
        return None
    parts = [part.strip() for part in text.split(",")]
    if len(parts) != 2 or not all(part.isdecimal() for part in parts):
        raise ValueError(f"--heads {text}: expected two whole numbers, those of the text and the image decoder: 16,16.")
    return int(parts[0]), int(parts[1])
