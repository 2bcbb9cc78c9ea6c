"""`hf-longctx eval`: perplexity, the passkey grid, generated tasks, and files of benchmarks."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.console import Console

from ..console.progress import beyond_on_purpose
from ..console.units import parse_lengths
from ..settings import read_settings
from .options import Device, Dtype, MethodName, Model, Settings, chosen_of, load_model, numbers, resumes


def _list(wanted: bool) -> None:
    """Print every task with its settings, and leave."""
    if not wanted:
        return
    from ..evaluation.runner import described

    for heading, lines in described().items():
        typer.echo(heading)
        for line in lines:
            typer.echo(f"    {line}")
    raise typer.Exit


def evaluate(
    model: Model,
    task: Annotated[
        str,
        typer.Option(
            help="ppl or passkey alone; or ruler, names of tasks and READER:FILE, separated by commas.",
            show_default=False,
        ),
    ],
    lengths: Annotated[
        str, typer.Option(help="Tokens to read: 4096,8k,1M (k is 1,024, M 1,000,000).", show_default=False)
    ],
    out: Annotated[Path, typer.Option(help="Folder for results.json and finished cells.", show_default=False)],
    method: MethodName = None,
    settings: Settings = None,
    task_settings: Annotated[
        list[str] | None,
        typer.Option("--task-set", metavar="KEY=VALUE", help="A setting of the task, such as trials=20: see --list."),
    ] = None,
    depths: Annotated[
        str | None, typer.Option(help="Where the answer is, 0 first to 1 last: 0,0.5,1. Else the task's own.")
    ] = None,
    text: Annotated[str, typer.Option(help="A text file, or python-docs.")] = "python-docs",
    window: Annotated[int | None, typer.Option(help="Override the config's trained length.")] = None,
    seed: int = 0,
    alone: Annotated[bool, typer.Option("--alone", help="Skip the stock baseline.")] = False,
    dtype: Dtype = "auto",
    device: Device = None,
    list_tasks: Annotated[
        bool, typer.Option("--list", callback=_list, is_eager=True, help="List tasks, readers and their settings.")
    ] = False,
) -> None:
    """Measure the stock model, its last window, and a method. An interrupted run continues where it stopped."""
    chosen = chosen_of(method, settings)
    length_list = parse_lengths(lengths, "--lengths")
    depth_list = None if depths is None else numbers("depths", depths)
    if not task.strip(", "):
        raise ValueError(f"--task {task}: expected a task or several, such as ruler or vt,kv.")
    given = {key: _listed(value) for key, value in read_settings(task_settings or []).items()}
    console = Console()
    with resumes(out), beyond_on_purpose():
        from ..evaluation.runner import Grid, checked, find_task
        from ..evaluation.runner import evaluate as run
        from ..hub.gguf import cache_home
        from ..hub.resolve import load_tokenizer

        # before the model is loaded
        what = find_task(task, given)
        grid = Grid(tasks=task.split(","), lengths=length_list, depths=depth_list, text=text, seed=seed)
        grid = checked(what, grid, chosen)
        what.probe(load_tokenizer(model), grid)
        loaded, tokenizer = load_model(model, dtype, device)
        run(
            loaded,
            tokenizer,
            task=task,
            lengths=length_list,
            out=out,
            method=chosen,
            depths=depth_list,
            text=text,
            seed=seed,
            window=window,
            alone=alone,
            cache=cache_home() / "samples",
            console=console,
            **given,
        )
        console.print(f"Results: {out}", markup=False, highlight=False, soft_wrap=True)


def _listed(value: Any) -> Any:
    """Numbers separated by commas as a list."""
    if isinstance(value, str) and "," in value:
        try:
            return json.loads(f"[{value}]")
        except json.JSONDecodeError:
            pass
    return value
