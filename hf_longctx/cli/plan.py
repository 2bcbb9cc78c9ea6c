"""`hf-longctx plan`: what a length will cost, and which method to take."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console

from .options import Force, MethodName, Settings, method_of, notes


def plan(
    model: Annotated[
        str,
        typer.Argument(
            help="A folder, a config.json, a Hub id, a .gguf file or smollm2-135m-instruct.", show_default=False
        ),
    ],
    length: Annotated[
        str, typer.Option(help="Tokens: 200000, 128k (k is 1,024) or 1M (M is 1,000,000).", show_default=False)
    ],
    memory: Annotated[
        str | None, typer.Option(help="24GiB (2^30 bytes each), 24GB or 24G (10^9); by default all of the GPU's.")
    ] = None,
    batch: Annotated[int, typer.Option(help="Rows of this length read at once.")] = 1,
    dtype: Annotated[str, typer.Option(help="bfloat16, float16 or float32.")] = "bfloat16",
    method: MethodName = None,
    settings: Settings = None,
    gpu: Annotated[str, typer.Option(help="h100, h200, a100, l4, rtx4090 or cpu.")] = "h100",
    tflops: Annotated[float | None, typer.Option(help="Another machine's peak TFLOP/s in 16 bits.")] = None,
    bandwidth: Annotated[float | None, typer.Option(help="Another machine's memory bandwidth, GB/s.")] = None,
    chunk: Annotated[
        int | None, typer.Option(help="Tokens read at once; by default few that are nearly as fast as many.")
    ] = None,
    out: Annotated[Path | None, typer.Option(help="Folder for a config.json with the method in it.")] = None,
    force: Force = False,
    as_json: Annotated[bool, typer.Option("--json", help="Every number, in bytes, seconds and tokens.")] = False,
) -> None:
    """Predict memory and time of a length from the config alone, and recommend a method. Exit code 1: none fits."""
    chosen = method_of(method, settings, "A plan is of methods")
    if out is not None:
        from ..hub.save import check_target

        check_target(out, overwrite=force)
    from ..planning.plan import plan as run
    from ..planning.render import show, write_config

    found = run(
        model, length, memory, batch=batch, dtype=dtype, method=chosen, gpu=gpu, tflops=tflops, bandwidth=bandwidth,
        chunk=chunk,
    )  # fmt: skip
    if as_json:
        typer.echo(json.dumps(found.to_dict(), indent=2))
    else:
        show(found, Console())
    if found.chosen is None:
        raise typer.Exit(1)
    if out is not None:
        written = write_config(found, out, overwrite=force)
        notes().print(f"Wrote {written}.", markup=False, highlight=False, soft_wrap=True)
