"""One evaluation: the stock model, the stock model on the last tokens that fit its window, and a method, alike.

Finished cells are kept in `cells.jsonl` as they come, so an interrupted run continues where it stopped.
"""

from __future__ import annotations

import textwrap
from collections.abc import Iterable, Mapping, Sequence
from contextlib import nullcontext
from pathlib import Path
from typing import TYPE_CHECKING, Any

from rich.console import Console

from ..console.progress import Progress
from ..settings import unknown_setting
from ..storage.cells import CellStore
from ..storage.files import check_folder, claimed
from ..storage.fingerprint import weights_digest
from . import benchmarks, tasks
from .folder import declared, modules
from .report.files import ResultFile
from .report.render import terminal
from .report.sections import sections
from .results import environment, result_file, write_results
from .suite import Suite
from .task import Cell, Grid, Prepared, Task

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase


def evaluate(
    model: Any,
    tokenizer: PreTrainedTokenizerBase,
    *,
    task: str | Sequence[str],
    lengths: Sequence[int],
    out: str | Path,
    method: Any = None,
    depths: Sequence[float] | None = None,
    text: str = "python-docs",
    seed: int = 0,
    window: int | None = None,
    alone: bool = False,
    cache: str | Path | None = None,
    command: str | None = None,
    console: Console | None = None,
    **settings: Any,
) -> dict[str, Any]:
    """Measure, write `results.json`, `cells.jsonl` and the task's other files into `out`, print a table.

    A configuration that runs out of GPU memory at some length is reported so, and tried again by the next run.

    Args:
        model: A causal language model in eval mode, without a method applied.
        tokenizer: Its tokenizer.
        task: "ppl" or "passkey"; or names of generated tasks, "ruler" for the eleven of RULER's that need no file, and
            "READER:FILE" for a local file of a benchmark, separated by commas or in a list. A pass key in a list is a
            task like the others, with a chat template.
        lengths: Context lengths in tokens; of tasks and files, of prompt and answer together.
        out: Folder of the results; the same arguments and folder resume an interrupted run.
        method: Compared with the model as it is: a method, or for tasks that ask questions a procedure.
        depths: Where the answer is, 0 first to 1 last: one cell for each.
        text: Which is read, or in which needles are hidden, see `load_text`.
        seed: Of the generated prompts.
        window: Trained length in tokens; the config's `max_position_embeddings` by default.
        alone: Measure the method only, or the model as it is without one.
        cache: Folder that keeps generated samples; None: they are made again.
        command: Recorded as the command; this process's own by default.
        console: Where the table goes, and the progress bar if that is a terminal (see `progress.Progress`).
        settings: Of the task, see `hf-longctx eval --list`.

    Returns:
        The contents of `results.json`.

    Raises:
        ImportError: The task needs a package that is not installed.
        ValueError: A name or value is wrong, a text or a length is too short, a file is not in its benchmark's format,
            `out` holds another run, or the model already carries a method.
        OSError: A file cannot be read, `out` cannot be written, or another run writes there now; finished cells are
            kept.
    """
    chosen = find_task(task, settings)
    grid = Grid(tasks=_names(task), lengths=lengths, depths=depths, text=text, seed=seed, cache=cache)
    grid = checked(chosen, grid, method)
    check_folder(out)
    window = checked_window(model.config.get_text_config(), window, chosen.at_least)
    kinds = _configurations(model, method, window, alone)
    if method is not None:
        # a method that refuses this model should do so before the stock model has run for an hour
        with method.running(model):
            pass
        method.check_room(model, max(grid.lengths))
    prepared = chosen.prepare(tokenizer, grid)
    places = prepared.places()
    cells = {name: {at: prepared.cell(kind, at, cut) for at in places} for name, (kind, cut) in kinds.items()}
    told = {"task": chosen.name, "seed": seed, "method": None if method is None else method.spec()}
    told |= prepared.settings(window)
    # cells of older code or other hardware do not belong beside new ones
    here = {"model": model_name(model), "weights": weights_digest(model), **environment(model.device)}
    console = console or Console()
    with claimed(out):
        store = CellStore(Path(out) / "cells.jsonl", {**prepared.asked, **told, **here})
        each = [cell for own in cells.values() for cell in own.values()]
        _measure(model, method, prepared, each, store, console)
        values = {name: {at: store.get(cell.key) for at, cell in own.items()} for name, own in cells.items()}
        told |= {"window": window, "configurations": list(kinds), **prepared.notes}
        told |= {"method_repr": None if method is None else repr(method)}
        rows = prepared.rows(values, window)
        found = result_file(rows, model=model_name(model), command=command, device=model.device, settings=told)
        write_results(Path(out) / "results.json", found)
        prepared.write(Path(out), found, values)
        console.print(terminal(sections([ResultFile("results.json", found)]), []))
        return found


def _configurations(model: Any, method: Any, window: int, alone: bool) -> dict[str, tuple[str, int | None]]:
    """{name: whether "stock" or "method" runs, and the window that it is given the last tokens of}."""
    carries = bool(getattr(model.config, "hf_longctx", None))
    if carries and method is not None:
        raise ValueError(
            "The model already carries a method in config.hf_longctx, so there is no stock model to compare with. "
            "Load the original checkpoint, or leave out method= to measure the model as it is."
        )
    stock: dict[str, tuple[str, int | None]] = {"as loaded" if carries else "stock": ("stock", None)}
    own: dict[str, tuple[str, int | None]] = {} if method is None else {type(method).__name__: ("method", None)}
    if alone:
        return own or stock
    return {**stock, f"last {window:,} tokens": ("stock", window), **own}


def _measure(
    model: Any, method: Any, prepared: Prepared, cells: Iterable[Cell], store: CellStore, console: Console
) -> None:
    waiting = {cell.key: cell for cell in cells if cell.key not in store}
    with Progress(prepared.unit, sum(cell.size for cell in waiting.values()), console) as progress:
        for kind in ("stock", "method"):
            apart = kind == "method" and method is not None and method.reads_documents
            own = [cell for cell in waiting.values() if cell.key[0] == kind]
            with method.running(model) if kind == "method" and own else nullcontext({}) as extra:
                for length in sorted({cell.length for cell in own}):
                    progress.describe(f"{kind} {length:,}")
                    some = [cell for cell in own if cell.length == length]
                    for cell, value in prepared.measure(model, some, progress.advance, extra, apart):
                        if value is not None:
                            store.put(cell.key, value)


def _names(task: str | Sequence[str]) -> list[str]:
    """The names of tasks one by one, each once."""
    parts = task.split(",") if isinstance(task, str) else task
    names = list(dict.fromkeys(name.strip() for name in parts if name.strip()))
    if not names:
        raise ValueError("tasks: give at least one, such as ruler or vt,kv.")
    return names


def find_task(task: str | Sequence[str], settings: Mapping[str, Any]) -> Task:
    """The task of these names with its settings: one that is measured alone, or a suite, which a list always is.

    Raises:
        ValueError: There is no such task or setting, a value has the wrong type, or a task that is measured alone is
            among others.
        FileNotFoundError: The file of a benchmark is missing.
    """
    names = _names(task)
    alone: dict[str, type[Task]] = declared(tasks, "ALONE")
    kind = alone.get(names[0], Suite) if isinstance(task, str) and len(names) == 1 else Suite
    if kind is Suite:
        Suite.check_names(names)
    wrong = unknown_setting(",".join(names), list(kind.settings_help()), settings)
    if wrong:
        raise ValueError(wrong)
    return kind.from_fields(dict(settings))


def described() -> dict[str, list[str]]:
    """The list of tasks and readers: {heading: lines}."""

    def settings(kind: type[Task]) -> list[str]:
        return [f"--task-set {name}: {text}" for name, text in kind.settings_help().items()]

    found = {f"--task {name}: {kind.about}": settings(kind) for name, kind in declared(tasks, "ALONE").items()}
    names = ["ruler", *declared(tasks, "TASKS"), *(f"{name}:FILE" for name in declared(tasks, "FROM_FILE"))]
    found["--task with any of these, separated by commas: " + Suite.about] = [
        *textwrap.wrap(", ".join(names), 100),
        *(f"{name}:FILE  {str(module.__doc__).splitlines()[0]}" for name, module in modules(benchmarks).items()),
        *settings(Suite),
    ]
    return found


def checked(task: Task, grid: Grid, method: Any) -> Grid:
    """The grid in order; ValueError for what cannot be measured, whatever the model and its tokenizer are."""
    if method is not None and method.kind == "procedure" and not task.asks:
        raise ValueError(
            f"--method {method.name} is a way to generate, not a change of the model. {task.name} is measured on the "
            "model itself: take a task that asks questions, such as niah or ruler."
        )
    task.check(grid)
    return grid.sorted()


def checked_window(config: Any, window: int | None, at_least: int) -> int:
    """The trained length, the config's if it is not given; ValueError if there is none or it holds nothing."""
    window = getattr(config, "max_position_embeddings", None) if window is None else window
    if window is None:
        raise ValueError(
            "The config has no max_position_embeddings. Pass window=, the length the model was trained for."
        )
    if window <= at_least:
        raise ValueError(
            f"window={window} leaves no room for context besides the {at_least} tokens that are scored or generated. "
            "Pass a larger window=, or fewer n_targets= for perplexity."
        )
    return int(window)


def model_name(model: Any) -> str:
    """The name a model is quoted by in results."""
    revision = getattr(model.config, "_commit_hash", None)
    name = getattr(model.config, "_name_or_path", "")
    # the place of a folder concerns its owner only
    name = Path(name).name if Path(name).is_dir() else name
    name = name or f"{type(model).__name__} {weights_digest(model)}"
    return f"{name}@{revision}" if revision else name
