"""`hf-longctx calibrate`: what documents cost in groups of ranks, on these cards."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from . import options
from .options import Device, Dtype, Model, load_without_tokenizer


def calibrate(
    model: Model,
    out: Annotated[Path, typer.Option(help="The file of costs, for SequenceParallel(calibration=).")],
    tokens: Annotated[
        int, typer.Option(min=1, help="The most tokens of a process that are tried: keep it busy.")
    ] = 32768,
    seconds: Annotated[float, typer.Option(min=1, help="How long it may measure, besides compiling.")] = 20,
    dtype: Dtype = "auto",
    device: Device = None,
) -> None:
    """Measure what documents cost in groups of processes, for SequenceParallel(degree="auto").

    Under torchrun, with as many processes as the training: torchrun --nproc_per_node 8 --no-python hf-longctx calibrate
    """
    from ..evaluation.report.rows import number
    from ..parallel.model.calibration import calibrate as measured
    from ..storage.files import check_file
    from ..training.processes import is_first, joined
    from ..upstream.checkpointing import enable_checkpointing

    check_file(out, "--out")
    with joined():
        stock = load_without_tokenizer(model, dtype, device).train()
        enable_checkpointing(stock, {"use_reentrant": False})
        costs = measured(stock, tokens=tokens, seconds=seconds)
    if is_first():
        costs.write(out)
        options.plain(
            f"{out}: {number(costs.token * 1e6)} us a token, {number(costs.pair * 1e9)} ns a pair of tokens, "
            f"{number(costs.least[0] * 1e3)} ms or more a step"
        )
        for k, (exchange, fixed, least) in enumerate(zip(costs.exchange, costs.fixed, costs.least, strict=True)):
            if k:  # one process exchanges nothing
                options.plain(
                    f"groups of {2**k}: {number(exchange * 1e6)} us a token exchanged, {number(fixed * 1e3)} ms a step,"
                    f" {number(least * 1e3)} ms or more"
                )
