"""A plan as a page for a terminal, a table where one fits and lines where not, and as a config.json."""

from __future__ import annotations

import os
from pathlib import Path

from rich.console import Console
from rich.table import Table

from ..console.units import GIB, show_bytes, show_seconds
from ..hub.save import check_target
from .options import LONGEST, Option
from .plan import Plan


def show(plan: Plan, console: Console) -> None:
    """Print what was asked, every option, and what to take or to change."""

    def say(text: str, style: str = "") -> None:
        console.print(text, style=style, markup=False, highlight=False)

    trained = "unknown" if plan.trained is None else f"{plan.trained:,}"
    say(f"{plan.model}: {plan.parameters:,} parameters, trained to {trained} tokens")
    where = f"{show_bytes(plan.memory_bytes)} on {plan.machine.name}"
    say(f"{plan.tokens:,} tokens x {plan.batch}, {plan.dtype}, {where}\n")
    table = _table(plan)
    # on a page narrower than its columns a table is cut, names first; rich measures no wider than the page it is given
    if console.measure(table, options=console.options.update(width=1000)).minimum <= console.width:
        console.print(table)
    else:
        for option in plan.options:
            style = "green" if option is plan.chosen else ""
            say("\n  ".join([option.name, *_lines(option)]), style)
    say("(graph): per token, replayed from a CUDA graph; stock with a static cache and torch.compile\n", "dim")
    for option in plan.options:
        remark = f"; {option.remark}" if option.remark else ""
        say(f"{option.name}: {option.obstacle or f'sees {option.sees}'}{remark}.".replace("..", "."))
    say("")
    if plan.chosen is None:
        say(plan.why, "bold red")
        for line in (*plan.remedies, *plan.notes):
            say(line)
        return
    say(f"Recommended: {plan.why}", "bold green")
    made = plan.chosen.prediction
    assert made is not None
    parts = {
        "weights": made.weight_bytes,
        "cache": made.kv_bytes,
        "one chunk": made.activation_bytes,
        "logits": made.logits_bytes,
        "CUDA and libraries": made.runtime_bytes,
    }
    say("Its memory: " + ", ".join(f"{name} {show_bytes(size)}" for name, size in parts.items()) + ".")
    for line in plan.notes:
        say(line)


def write_config(plan: Plan, folder: str | os.PathLike[str], *, overwrite: bool = False) -> Path:
    """Write the model's config with the chosen method in it. ValueError if `folder` holds something."""
    check_target(folder, overwrite=overwrite)
    target = Path(folder).expanduser()
    plan.extended_config().save_pretrained(target)
    return target / "config.json"


def _table(plan: Plan) -> Table:
    table = Table(box=None, header_style="bold", padding=(0, 2, 0, 0))
    table.add_column("method")
    for name in ("GiB", "fits", "prefill", "per token", "(graph)", "most tokens"):
        table.add_column(name, justify="right", no_wrap=True)
    for option in plan.options:
        table.add_row(option.name, *_row(option), style="green" if option is plan.chosen else "")
    return table


def _lines(option: Option) -> list[str]:
    """A row in lines of at most 38 columns."""
    if option.prediction is None:
        return ["refuses this model"]
    size, fit, prefill, token, graph, most = _row(option)
    return [
        f"{size} GiB: {'fits' if fit == 'yes' else 'does not fit'}",
        f"prefill {prefill}",
        f"per token {token} (graph {graph})",
        f"most tokens {most}",
    ]


def _row(option: Option) -> list[str]:
    made = option.prediction
    if made is None:
        return ["–"] * 6
    graph = made.decode_seconds_graph
    return [
        f"{made.peak_bytes / GIB:,.1f}",
        "yes" if option.fits else "no",
        show_seconds(made.read_seconds),
        f"{1e3 * made.decode_seconds_eager:,.0f} ms",
        "–" if graph is None else f"{1e3 * graph:,.1f} ms",
        f"> {LONGEST:,}" if option.longest_tokens is None else f"{option.longest_tokens:,}",
    ]
