"""`hf-longctx train-check`: is a packed batch trained on as its documents are, one by one?"""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from . import options
from .options import Device, Dtype, Model, load_without_tokenizer, notes


def train_check(
    model: Model,
    batch: Annotated[
        Path,
        typer.Argument(help="A batch: .json, or .pt of torch.save, with input_ids and the rest.", show_default=False),
    ],
    degree: Annotated[int | None, typer.Option(min=1, help="Processes that share it; by default all.")] = None,
    kind: Annotated[str, typer.Option(help="auto, ring, gather, ulysses or hybrid.")] = "auto",
    cut: Annotated[str, typer.Option(help="balance, all, or the fewest tokens of a document that is cut.")] = "balance",
    stock: Annotated[
        str | None,
        typer.Option(help="Stock code instead: 'as given', 'no cache', 'mask', or accelerate's 'context parallel'."),
    ] = None,
    dtype: Dtype = "float32",
    device: Device = None,
) -> None:
    """Compare training on a batch with its documents one by one, tensor by tensor. Exit code 1: they differ.

    Under torchrun the processes share the batch: torchrun --nproc_per_node 2 --no-python hf-longctx train-check ...
    """
    from ..parallel.model.switch import SequenceParallel
    from ..training.batches import read_batch
    from ..training.check import train_check as check
    from ..training.processes import is_first, joined
    from ..training.ways import STOCK

    if stock is not None and stock not in STOCK:
        raise ValueError(f"--stock {stock!r}: expected {', '.join(map(repr, STOCK))}.")
    if stock is not None and (degree, kind, cut) != (None, "auto", "balance"):
        raise ValueError(f"--stock {stock!r} runs stock code, which has no --degree, --kind or --cut. Leave those out.")
    given = read_batch(batch)
    with joined() as processes:
        if degree is not None and processes % degree:
            raise ValueError(
                f"--degree {degree}: {processes} process(es) run this. Start it with `torchrun --nproc_per_node "
                f"{degree} --no-python hf-longctx train-check ...`, or give a degree that divides {processes}."
            )
        if stock is None:
            share = int(cut) if cut.isdigit() else cut
            way: str | SequenceParallel = SequenceParallel(
                degree=degree or processes, kind=kind, cut=share, gather_logits=True
            )
        else:
            way = stock
        first = is_first()
        if first:
            said = repr(way) if stock is None else f"{stock!r} ({STOCK[stock]})"
            said += " against one document after the other"
            notes().print(said, style="dim", highlight=False, markup=False, soft_wrap=True)
        failed = False
        for finding in check(load_without_tokenizer(model, dtype, device), given, way):
            failed |= not finding.holds
            if first:
                size = "" if finding.off is None else f"  {finding.off:.1e}"
                where = f"  ({finding.where})" if finding.where else ""
                options.plain(f"{'pass' if finding.holds else 'FAIL'}  {finding.name}{size}{where}")
    if failed:
        raise typer.Exit(1)
