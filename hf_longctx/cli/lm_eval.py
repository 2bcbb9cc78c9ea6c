"""`hf-longctx lm-eval`: EleutherAI's benchmarks on a model with a method."""

from __future__ import annotations

import json
from contextlib import nullcontext
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.console import Console
from rich.table import Table

from ..storage.files import claimed
from .options import Device, Dtype, MethodName, Model, Settings, load_model, method_of, notes


def lm_eval(
    model: Model,
    tasks: Annotated[str, typer.Option(help="Names of lm-eval, separated by commas.", show_default=False)],
    out: Annotated[Path | None, typer.Option(help="Folder for results.json.")] = None,
    method: MethodName = None,
    settings: Settings = None,
    include: Annotated[Path | None, typer.Option(help="A folder with task YAMLs of your own.")] = None,
    max_length: Annotated[
        int | None, typer.Option(min=1, help="Tokens of prompt and answer; what the method reads by default.")
    ] = None,
    truncate: Annotated[
        str, typer.Option(help="Over-long prompts: left, middle, error, or auto: middle for longbench, else left.")
    ] = "auto",
    metadata: Annotated[
        str, typer.Option(help='JSON for tasks that need it: {"max_seq_lengths": [4096]} for ruler.')
    ] = "{}",
    num_fewshot: Annotated[int | None, typer.Option(min=0)] = None,
    limit: Annotated[int | None, typer.Option(min=1, help="Samples of a task, for a quick look.")] = None,
    batch_size: Annotated[int, typer.Option(min=1)] = 1,
    chat_template: Annotated[bool, typer.Option("--apply-chat-template", help="As lm-eval's option.")] = False,
    dtype: Dtype = "auto",
    device: Device = None,
) -> None:
    """Run tasks of lm-eval (the extra lm-eval) with a method applied and the length it reads."""
    chosen = method_of(method, settings)
    extra = _object(metadata)
    if include is not None and not include.is_dir():
        raise ValueError(f"--include {include}: expected a folder with task YAMLs.")
    from ..evaluation.harness import CUTS, check_installed, harness_model, run
    from ..evaluation.results import result_file, write_results
    from ..evaluation.rows import row

    # before the model is loaded
    if truncate not in CUTS:
        raise ValueError(f"--truncate {truncate}: expected one of {', '.join(CUTS)}.")
    check_installed()
    with nullcontext() if out is None else claimed(out, "--out"):
        loaded, tokenizer = load_model(model, dtype, device)
        name = str(loaded.config._name_or_path)
        if chosen is not None:
            chosen.apply(loaded)
        harness = harness_model(loaded, tokenizer, max_length=max_length, truncate=truncate, batch_size=batch_size)
        notes().print(f"max_length={harness.max_length:,}", style="dim", highlight=False)
        found = run(
            harness,
            [task.strip() for task in tasks.split(",")],
            include=None if include is None else str(include),
            metadata={"pretrained": tokenizer.name_or_path, **extra},
            num_fewshot=num_fewshot,
            limit=limit,
            apply_chat_template=chat_template,
        )
        rows = []
        drawn = Table(title=f"{name}: lm-eval")
        for column in ("task", "metric", "value", "± (standard error)"):
            drawn.add_column(column, justify="left" if column in ("task", "metric") else "right", overflow="fold")
        for task, values in found["results"].items():
            for key, value in values.items():
                metric, _, filtered = key.partition(",")
                if not isinstance(value, int | float) or metric.endswith("_stderr") or metric == "sample_len":
                    continue
                error = values.get(f"{metric}_stderr,{filtered}")
                detail = {"task": task, "filter": filtered, "stderr": _number(error)}
                rows.append(row(f"{task}, {metric}", float(value), metric, detail=detail))
                drawn.add_row(task, metric, f"{value:.4f}", "–" if _number(error) is None else f"{error:.4f}")
        Console().print(drawn)
        if out is not None:
            what: dict[str, Any] = {
                "task": "lm-eval",
                "tasks": tasks,
                "max_length": harness.max_length,
                "truncate": truncate,
                "limit": limit,
                "method": None if chosen is None else chosen.spec(),
            }
            write_results(out / "results.json", result_file(rows, model=name, device=loaded.device, settings=what))
            notes().print(f"Results: {out}", highlight=False)


def _object(text: str) -> dict[str, Any]:
    try:
        found = json.loads(text)
    except json.JSONDecodeError as error:
        raise ValueError(f"--metadata {text}: not JSON ({error.msg}).") from None
    if not isinstance(found, dict):
        raise ValueError(f'--metadata {text}: expected a JSON object such as {{"max_seq_lengths": [4096]}}.')
    return found


def _number(value: Any) -> float | None:
    return float(value) if isinstance(value, int | float) else None
