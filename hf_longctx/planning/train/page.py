"""A plan of training as a page for a terminal."""

from __future__ import annotations

from rich.console import Console
from rich.table import Table

from ...console.units import GIB, show_bytes, show_seconds
from ..options import LONGEST
from .changes import TrainOption
from .plan import TrainPlan

COLUMNS = ("GiB", "host GiB", "a step", "tokens/s", "fits", "most tokens")


def show_training(plan: TrainPlan, console: Console) -> None:
    """Print what was asked, what each change does, the verdict, and where memory and time go."""

    def say(text: str, style: str = "") -> None:
        console.print(text, style=style, markup=False, highlight=False)

    run = plan.asked.run
    say(f"{plan.model}: {plan.parameters:,} parameters; {run.precision}, {run.optimizer}")
    shared = f", {run.ranks} share a batch by {plan.kind}" if run.ranks > 1 else ""
    where = f"{run.gpus} x {plan.machine.name} of {show_bytes(plan.room.device)}"
    say(f"{run.tokens:,} tokens on {where}{shared}\n")
    table = Table(box=None, header_style="bold", padding=(0, 2, 0, 0))
    table.add_column("settings")
    for name in COLUMNS:
        table.add_column(name, justify="right", no_wrap=True)
    for option in plan.options:
        table.add_row(option.flags, *_row(option), style="green" if option is plan.chosen else "")
    if console.measure(table, options=console.options.update(width=1000)).minimum <= console.width:
        console.print(table)
    else:  # a narrow page
        for option in plan.options:
            cells = (f"{name} {cell}" for name, cell in zip(COLUMNS, _row(option), strict=True))
            say("\n  ".join([option.flags, *cells]))
    say("")
    say(plan.verdict, "bold red" if plan.asked.lacks else "bold green")
    shown = plan.chosen or plan.asked
    of, time = shown.need, shown.time
    parts = {
        "weights": of.weights, "optimizer": of.states, "gradients": of.gradients, "kept for backward": of.saved,
        f"at the peak ({of.widest})": of.moment, "CUDA and libraries": of.runtime,
    }  # fmt: skip
    say(f"Its memory ({shown.flags}): " + ", ".join(f"{name} {show_bytes(size)}" for name, size in parts.items()) + ".")
    seconds = {
        "linear maps": time.matmuls, "attention": time.attention, "element-wise": time.element_wise,
        "exchange": time.exchange, "copies to the host": time.copies,
    }  # fmt: skip
    took = ", ".join(f"{name} {show_seconds(size)}" for name, size in seconds.items() if size)
    say(f"Its time: {took}; the host takes {show_seconds(time.host)} beside.")
    for line in plan.notes:
        say(line)


def _row(option: TrainOption) -> list[str]:
    return [
        f"{option.need.device / GIB:,.1f}",
        f"{option.need.pinned / GIB:,.1f}" if option.need.pinned else "–",
        show_seconds(option.time.step),
        f"{option.run.tokens * option.run.gpus / option.run.ranks / option.time.step:,.0f}",
        "no" if option.lacks else "yes",
        f"> {LONGEST:,}" if option.longest_tokens is None else f"{option.longest_tokens:,}",
    ]
