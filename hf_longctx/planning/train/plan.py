"""`plan_train`: does a training step of this model and length fit, how long does it take, and what would fit?"""

from __future__ import annotations

import dataclasses
import os
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from ...console.units import parse_bytes, parse_tokens, show_bytes, show_seconds
from ..hardware import Machine, find_machine
from ..shape import build, read_config
from .changes import MOST_GPUS, FitSearch, TrainOption
from .exchange import kind_of, lacks_heads
from .fits import Room
from .precisions import PRECISIONS
from .run import TrainingRun
from .sizes import sizes_of

if TYPE_CHECKING:
    from transformers import PreTrainedConfig

LARGEST_HOST = 72  # GPUs that one NVLink switch joins, of a GB200 NVL72; most hosts have 8


@dataclass(frozen=True, kw_only=True)
class TrainPlan:
    """The answer: the run as it was asked for, what single changes do, and the cheapest that would fit.

    Args:
        options: As asked, then every single change, then several together where no single one is enough.
        chosen: The run as asked if it fits, or the cheapest that does. None: nothing does.
        kind: How its ranks exchange.
    """

    model: str
    machine: Machine
    room: Room
    parameters: int
    options: list[TrainOption]
    chosen: TrainOption | None
    kind: str
    notes: list[str]

    @property
    def asked(self) -> TrainOption:
        """The run as it was asked for."""
        return self.options[0]

    @property
    def verdict(self) -> str:
        """Whether it fits; if not, why, and what would."""
        run = self.asked.run
        where = f"{run.tokens:,} tokens on {run.gpus} x {self.machine.name}"
        if not self.asked.lacks:
            step = self.asked.time.step
            speed = f"{run.tokens * run.gpus / run.ranks / step:,.0f} tokens/s"
            return f"Fits: {where}, a step in {show_seconds(step)} ({speed})."
        said = f"Does not fit: {where}: {self.asked.lacks}."
        if self.chosen is None:
            return f"{said} Nothing that is offered here would fit it; take fewer tokens or a smaller model."
        took = show_seconds(self.chosen.time.step)
        return f"{said} The cheapest that fits: {self.chosen.flags} ({show_bytes(self.chosen.need.device)}, {took})."

    def to_dict(self) -> dict[str, Any]:
        """For JSON: numbers in bytes, seconds and tokens."""
        plain = {"model": self.model, "parameters": self.parameters, "kind": self.kind, "notes": self.notes}
        plain |= {"verdict": self.verdict, "chosen": None if self.chosen is None else self.chosen.flags}
        plain |= {"machine": dataclasses.asdict(self.machine), "room": dataclasses.asdict(self.room)}
        plain["options"] = [
            dataclasses.asdict(one) | {"device_bytes": one.need.device, "step_seconds": one.time.step}
            for one in self.options
        ]
        return plain


def plan_train(
    model: str | os.PathLike[str] | PreTrainedConfig,
    tokens: int | str,
    gpus: int = 1,
    *,
    memory: int | str | None = None,
    host_memory: int | str | None = None,
    gpu: str = "h100",
    tflops: float | None = None,
    bandwidth: float | None = None,
    lora: int | None = None,
    **settings: Any,
) -> TrainPlan:
    """Predict bytes and seconds of a training step of `tokens` tokens, one document, from the config alone.

    Args:
        model: A folder, a config.json, a Hub id, a .gguf file, `"smollm2-135m-instruct"` or a config.
        tokens: Of the batch that the GPUs share: 200000, "128k" (131,072) or "1M" (1,000,000).
        gpus: How many GPUs of one host share it, at most 72 (`LARGEST_HOST`).
        memory: Of each GPU: bytes, "80GB" or "74GiB". None: all that `gpu` has.
        host_memory: Of the host. None: not looked at.
        gpu: "h100", "h200", "a100", "l4", "rtx4090" or "cpu".
        tflops: Peak TFLOP/s in 16 bits of another machine, instead of `gpu`'s.
        bandwidth: The same for its memory, in GB/s.
        lora: The rank of adapters on all linear maps of the layers, if these alone are trained.
        settings: Of `TrainingRun`: precision, optimizer, checkpointing, offload, chunked_loss, tile, remat, ...
    """
    if lora is not None and lora < 1:
        raise ValueError(f"lora={lora}: expected the rank of adapters, 1 or more, or None to train all parameters.")
    machine = find_machine(gpu, tflops, bandwidth)
    device = machine.memory_bytes if memory is None else parse_bytes(memory)
    if device is None:
        raise ValueError(f"memory=None: {machine.name} has no fixed memory. Say how much there is, such as 16GiB.")
    room = Room(device, None if host_memory is None else parse_bytes(host_memory, "host_memory"))
    run = TrainingRun(tokens=parse_tokens(tokens, "tokens"), gpus=gpus, **settings)
    if run.ranks > run.tokens:  # here, not in TrainingRun: the search for the longest text tries fewer tokens
        raise ValueError(
            f"gpus={gpus}: {run.ranks} GPUs cannot share {run.tokens} token(s), expected at least one token for each. "
            f"Take fewer GPUs or more tokens."
        )
    in_one = run.gpus // run.hosts
    if in_one > LARGEST_HOST:
        raise ValueError(
            f"gpus={gpus}: one host was planned, and no host has more than {LARGEST_HOST} GPUs. What ranks of several "
            f"hosts send each other is not predicted: plan the GPUs of one host."
        )
    if run.ranks == 1 and run.kind == "auto":
        run = run.but(kind="stock")
    config, source = read_config(model)
    sizes = sizes_of(build(config))
    if lacks_heads(sizes, run):
        raise ValueError(
            f"kind='ulysses': {sizes.shape.widest.heads} query heads cannot be shared by {run.ranks} ranks. Use "
            f"kind='ring' or 'gather'."
        )
    if run.fused_norms and not sizes.can_fuse_norms(run.precision):
        raise ValueError(
            f"fused_norms=True: {source} has no RMSNorm that is one kernel in {run.precision}. Leave it out, or choose "
            f"precision='mixed' for a model that adds 1 to the weights of its norms, such as Gemma."
        )
    if lora is not None:
        run = run.but(trained=sizes.adapter(lora))
    search = FitSearch(sizes, machine, room)
    asked = search.option(run)
    chosen = search.cheapest(run) if asked.lacks else asked
    options = [asked, *search.singles(run)]
    if chosen is not None and chosen not in options:
        options.append(chosen)
    notes = [f"Counted: {PRECISIONS[run.precision].summary}."]
    if in_one > MOST_GPUS:
        notes.append(f"{in_one} GPUs are taken to be in one host. Between hosts a step takes longer than predicted.")
    if machine != find_machine("h100"):
        notes.append("Seconds are calibrated on an H100 only: take them as an order of magnitude.")
    if any(option.need.pinned for option in options):
        notes.append("torch rounds each pinned hidden state up to a power of two, which is counted.")
    if chosen is not None and chosen.need.pinned and room.host is None:
        notes.append(f"The host must have {show_bytes(chosen.need.pinned)} for pinned memory: say what it has.")
    return TrainPlan(
        model=source, machine=machine, room=room, parameters=sizes.shape.parameters, options=options, chosen=chosen,
        kind=kind_of(sizes, run), notes=notes,
    )  # fmt: skip
