"""`hf-longctx eval`: perplexity, the passkey grid, and suites of tasks."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer
from rich.console import Console

from ..console.progress import beyond_on_purpose
from ..console.units import parse_lengths
from .options import Device, Dtype, MethodName, Model, Settings, chosen_of, load_model, method_of, numbers, resumes

GRIDS = ("ppl", "passkey")


def evaluate(
    model: Model,
    task: Annotated[
        str,
        typer.Option(
            help="ppl, passkey, or a suite: ruler, names of tasks and READER:FILE, separated by commas.",
            show_default=False,
        ),
    ],
    lengths: Annotated[
        str, typer.Option(help="Tokens to read: 4096,8k,1M (k is 1,024, M 1,000,000).", show_default=False)
    ],
    out: Annotated[
        Path, typer.Option(help="Folder for results.json, figure.png and finished cells.", show_default=False)
    ],
    method: MethodName = None,
    settings: Settings = None,
    text: Annotated[str, typer.Option(help="A text file, or python-docs.")] = "python-docs",
    window: Annotated[int | None, typer.Option(help="Trained length, if the config's is not meant.")] = None,
    seed: int = 0,
    documents: Annotated[int, typer.Option(help="ppl: spans of the text.")] = 4,
    n_targets: Annotated[int, typer.Option(help="ppl: tokens scored at the end of each span.")] = 1024,
    depths: Annotated[
        str | None,
        typer.Option(help="Where the answer is, 0 first to 1 last; passkey: 0,0.25,0.5,0.75,1, suites: anywhere."),
    ] = None,
    trials: Annotated[int, typer.Option(help="passkey: prompts a cell.")] = 10,
    haystack: Annotated[str, typer.Option(help="passkey: filler, or text to hide the key in --text.")] = "filler",
    prefill_chunk_size: Annotated[int | None, typer.Option(min=1, help="passkey: read a prompt in chunks.")] = None,
    samples: Annotated[
        str | None, typer.Option(help="suites: a cell's samples, or a number for each length; 25, or all of a file.")
    ] = None,
    alone: Annotated[bool, typer.Option("--alone", help="suites: not the stock model beside the method.")] = False,
    batch_tokens: Annotated[int | None, typer.Option(min=1, help="suites: prompt tokens of a batch.")] = None,
    batch_rows: Annotated[int | None, typer.Option(min=1, help="suites: prompts of a batch.")] = None,
    prefill_tokens: Annotated[int | None, typer.Option(min=1, help="suites: tokens of a batch read at once.")] = None,
    dtype: Dtype = "auto",
    device: Device = None,
) -> None:
    """Measure the stock model, its last window, and a method. An interrupted run goes on where it stopped."""
    instead = f"{task} is measured on the model itself: take a suite, such as --task niah or --task ruler"
    chosen: Any = method_of(method, settings, instead) if task in GRIDS else chosen_of(method, settings)
    length_list = parse_lengths(lengths, "--lengths")
    depth_list = None if depths is None else numbers("depths", depths)
    console = Console()
    from ..hub.resolve import load_tokenizer

    with resumes(out), beyond_on_purpose():
        if task in GRIDS:
            if samples or alone or batch_tokens or batch_rows or prefill_tokens:
                raise ValueError(
                    f"--samples, --alone, --batch-tokens, --batch-rows and --prefill-tokens are of suites, not of "
                    f"{task}."
                )
            from ..evaluation.run import DEPTHS, check_texts, checked_grid
            from ..evaluation.run import evaluate as run

            # before the model is loaded
            depth_list = depth_list or list(DEPTHS)
            checked_grid(task, length_list, depth_list, haystack=haystack, trials=trials, n_targets=n_targets)
            check_texts(
                load_tokenizer(model), task, length_list, depth_list, text=text, haystack=haystack, documents=documents
            )
            loaded, tokenizer = load_model(model, dtype, device)
            run(
                loaded, tokenizer, task=task, lengths=length_list, method=chosen, out=out, text=text, seed=seed,
                window=window, documents=documents, n_targets=n_targets, trials=trials, haystack=haystack,
                prefill_chunk_size=prefill_chunk_size, console=console,
                depths=depth_list,
            )  # fmt: skip
            console.print(f"Results and figure: {out}", markup=False, highlight=False, soft_wrap=True)
            return
        counts = _counts(samples, length_list)
        from ..evaluation.suite import check_run, check_samples, evaluate_tasks
        from ..evaluation.tasks.collect import check_names
        from ..hub.gguf import cache_home

        names = [name.strip() for name in task.split(",") if name.strip()]
        if not names:
            raise ValueError(f"--task {task}: expected a task or several, such as ruler or vt,kv.")
        # before the model is loaded
        check_names(names)
        check_run(
            length_list, counts, out, depth_list, batch_tokens=batch_tokens, batch_rows=batch_rows,
            prefill_tokens=prefill_tokens,
        )  # fmt: skip
        check_samples(load_tokenizer(model), names, length_list, seed=seed, depths=depth_list, text=text)
        loaded, tokenizer = load_model(model, dtype, device)
        evaluate_tasks(
            loaded, tokenizer, tasks=names, lengths=length_list, method=chosen, out=out, n=counts, seed=seed, text=text,
            depths=depth_list, window=window, alone=alone, batch_tokens=batch_tokens, batch_rows=batch_rows,
            prefill_tokens=prefill_tokens,
            cache=cache_home() / "samples", console=console,
        )  # fmt: skip
        console.print(f"Results: {out}", markup=False, highlight=False, soft_wrap=True)


def _counts(samples: str | None, lengths: list[int]) -> Any:
    """A number of samples, or one for each length."""
    if samples is None:
        return None
    many = [int(n) for n in numbers("samples", samples, whole=True)]
    if len(many) == 1:
        return many[0]
    if len(many) != len(lengths):
        raise ValueError(f"--samples {samples}: expected one number, or one for each of {len(lengths)} lengths.")
    return dict(zip(lengths, many, strict=True))
