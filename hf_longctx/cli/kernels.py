"""`hf-longctx kernels`: which kernel does which attention on this machine."""

from __future__ import annotations

from typing import Annotated

import typer
from rich.table import Table

from . import options
from .options import Device, Dtype, dtype_of


def kernels(
    dtype: Dtype = "auto",
    device: Device = None,
    chunk: Annotated[int, typer.Option(min=16, help="Queries of a chunk, tokens.")] = 2048,
    head_dim: Annotated[int, typer.Option(min=8, help="Dims of a head.")] = 128,
) -> None:
    """Show which attention kernel does which work on this machine, timed here."""
    from ..console.progress import Progress
    from ..hub.resolve import default_device, usable_device
    from ..ops.kernels.table import table

    where = default_device() if device is None else usable_device(device)
    shown = Table(title=f"{where}: milliseconds; the kernel that is used is marked")
    for name in ("work", "kernel", "ms"):
        shown.add_column(name, justify="right" if name == "ms" else "left", overflow="fold")
    half = where.type == "cuda" and dtype == "auto"
    kind = dtype_of("bfloat16" if half else "float32" if dtype == "auto" else dtype)
    with Progress("kernels timed", console=options.screen) as progress:
        for row in table(where, kind, chunk=chunk, head_dim=head_dim):
            progress.advance(row.milliseconds is not None)
            if row.refused is None:
                text = "–" if row.milliseconds is None else f"{row.milliseconds:.2f}"
                taken = "by name" if row.by_name else text
                shown.add_row(row.work, row.kernel + (" *" if row.chosen else ""), taken)
    options.screen.print(shown)
