"""`hf-longctx plan train`: does a training step fit, how long does it take, and what would fit?"""

from __future__ import annotations

import json
from typing import Annotated, Any

import typer
from rich.console import Console
from typer.core import TyperCommand


def plan_train(
    model: Annotated[
        str,
        typer.Argument(
            help="A folder, a config.json, a Hub id, a .gguf file or smollm2-135m-instruct.", show_default=False
        ),
    ],
    tokens: Annotated[
        str, typer.Option(help="Of a batch: 200000, 128k (k is 1,024) or 1M (M is 1,000,000).", show_default=False)
    ],
    gpus: Annotated[int, typer.Option(help="GPUs of one host, which share the batch.")] = 1,
    memory: Annotated[
        str | None, typer.Option(help="Of each GPU: 74GiB (2^30 bytes each) or 80GB (10^9); by default all of it.")
    ] = None,
    host_memory: Annotated[str | None, typer.Option(help="Of the host; by default it is not looked at.")] = None,
    precision: Annotated[str, typer.Option(help="bf16, master (bf16 with fp32 master weights), mixed or fp32.")] = (
        "bf16"
    ),
    optimizer: Annotated[str, typer.Option(help="adamw, adamw_foreach, adamw_8bit, momentum or sgd.")] = "adamw",
    lora: Annotated[int | None, typer.Option(help="Rank of adapters, if these alone are trained.")] = None,
    checkpointing: Annotated[
        bool, typer.Option("--checkpointing/--no-checkpointing", help="Layers are computed again in backward.")
    ] = True,
    offload: Annotated[
        bool, typer.Option("--offload", help="Hidden states on the host (transformers' own offload).")
    ] = False,
    chunked_loss: Annotated[
        bool, typer.Option("--chunked-loss/--whole-logits", help="TrainingMemory's loss, or the stock one.")
    ] = True,
    tile: Annotated[int | None, typer.Option(help="Tokens that an MLP computes at a time, such as 8192.")] = None,
    remat: Annotated[str, typer.Option(help="attention: what it computed is kept; none: computed again.")] = "none",
    keep_on_host: Annotated[
        bool, typer.Option("--keep-on-host", help="What --remat attention keeps is on the host.")
    ] = False,
    fused_norms: Annotated[bool, typer.Option("--fused-norms", help="RMS norms are one kernel each.")] = False,
    kind: Annotated[str, typer.Option(help="auto, gather, ring or ulysses.")] = "auto",
    shard: Annotated[bool, typer.Option("--shard", help="FSDP2 instead of DDP.")] = False,
    gpu: Annotated[str, typer.Option(help="h100, h200, a100, l4, rtx4090 or cpu.")] = "h100",
    tflops: Annotated[float | None, typer.Option(help="Another machine's peak TFLOP/s in 16 bits.")] = None,
    bandwidth: Annotated[float | None, typer.Option(help="Another machine's memory bandwidth, GB/s.")] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Every number, in bytes, seconds and tokens.")] = False,
) -> None:
    """Predict memory and time of a training step from the config alone. Exit code 1: it does not fit."""
    from ..planning.train import plan_train as run
    from ..planning.train.page import show_training

    found = run(
        model, tokens, gpus, memory=memory, host_memory=host_memory, gpu=gpu, tflops=tflops, bandwidth=bandwidth,
        precision=precision, optimizer=optimizer, lora=lora, checkpointing=checkpointing, offload=offload,
        chunked_loss=chunked_loss, tile=tile, remat=None if remat == "none" else remat, keep_on_host=keep_on_host,
        fused_norms=fused_norms, kind=kind, shard=shard,
    )  # fmt: skip
    if as_json:
        typer.echo(json.dumps(found.to_dict(), indent=2))
    else:
        show_training(found, Console())
    if found.asked.lacks:
        raise typer.Exit(1)


def _command() -> Any:
    app = typer.Typer(add_completion=False, pretty_exceptions_enable=False)
    app.command("train")(plan_train)
    return typer.main.get_command(app)


class PlanCommand(TyperCommand):
    """`hf-longctx plan`, whose first word may be `train`; a model of that name is ./train."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.commands = {"train": _command()}

    def make_context(self, info_name: str | None, args: list[str], parent: Any = None, **extra: Any) -> Any:
        """The context of `plan`, or of `plan train`."""
        if args[:1] == ["train"]:
            return self.commands["train"].make_context(f"{info_name} train", args[1:], parent, **extra)
        return super().make_context(info_name, args, parent, **extra)
