"""Many tasks at many lengths in one run: the stock model, the stock model on what fits its window, and a method.

Finished cells are kept in `cells.jsonl` as they come, so an interrupted run goes on where it stopped.
"""

from __future__ import annotations

import dataclasses
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import nullcontext
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from rich.console import Console
from torch import Tensor

from ..console.progress import Progress
from ..storage.cells import CellStore
from ..storage.files import claimed
from ..storage.fingerprint import tokenizer_digest, weights_digest
from .answer import answer, batches, greedy
from .metrics import scores
from .metrics.table import check
from .passkey import check_depth
from .report import suite as suite_report
from .results import check_out, environment, results, write_results
from .run import checked_window, model_name
from .tasks.collect import collect, digest
from .tasks.sample import Sample, encode, encode_all, encode_parts, shorten

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

# {(task, length, depth): its samples}
Cells = dict[tuple[str, int, float | None], list[Sample]]


@dataclass
class _Open:
    """A cell that is being measured."""

    key: tuple[Any, ...]
    samples: list[Sample]
    keep: int | None  # tokens a prompt is cut to
    said: list[str | None] = field(default_factory=list)
    seconds: float = 0.0
    peak: float = 0.0
    failed: bool = False


@dataclass
class _Row:
    """A prompt of a cell."""

    cell: _Open
    index: int
    sample: Sample
    room: int
    ids: Tensor = field(default_factory=lambda: torch.empty(0))


def evaluate_tasks(
    model: Any,
    tokenizer: PreTrainedTokenizerBase,
    *,
    tasks: Sequence[str],
    lengths: Sequence[int],
    method: Any = None,
    out: str | Path,
    n: int | Mapping[int, int] | None = None,
    seed: int = 0,
    text: str = "python-docs",
    depths: Sequence[float] | None = None,
    window: int | None = None,
    alone: bool = False,
    batch_tokens: int | None = None,
    batch_rows: int | None = None,
    prefill_tokens: int | None = None,
    cache: str | Path | None = None,
    command: str | None = None,
    console: Console | None = None,
) -> dict[str, Any]:
    """Measure, write `results.json`, `cells.jsonl` and `predictions.jsonl` into `out`, print a table, return results.

    Args:
        model: A causal language model in eval mode, without a method applied.
        tokenizer: Its tokenizer.
        tasks: Names of generated tasks (`hf_longctx.evaluation.tasks.NAMES`), "ruler" for the eleven of RULER's that
            need no file, "qa_1:FILE" and "qa_2:FILE", and "READER:FILE" for a local file of a benchmark.
        lengths: Tokens of prompt and answer together. Generated prompts have that length; those of a file are cut to
            it, each as its benchmark says.
        method: Compared with the model as it is: a method or a procedure. One that reads documents gets prompts one by
            one, with `head` and `question`, the tokens of a prompt that stand before and after its document. Its
            `check_room` is asked before anything is measured.
        out: Folder of the results; the same arguments and folder resume an interrupted run.
        n: Samples a cell: a number, or one for each length; by default 25 that are made, and all of a file.
        seed: Of the generated samples.
        text: In which needles are hidden, see `load_text`.
        depths: One cell for each depth, for tasks whose answer is at one place; by default places are random.
        window: Trained length in tokens; the config's `max_position_embeddings` by default.
        alone: Measure the method only, or the model as it is without one.
        batch_tokens: Prompt tokens of a batch. By default 262,144 on a GPU and one prompt on a CPU; a batch that does
            not fit into memory is halved.
        batch_rows: Prompts of a batch, at most: what limits methods whose memory does not grow with the text.
        prefill_tokens: Tokens of the batch that one forward pass reads; None: prompts in one piece.
        cache: Folder that keeps generated samples; None: they are made anew.
        command: What to record as the command; this process's own by default.
        console: Where the table goes, and the progress bar if that is a terminal (see `progress.Progress`).

    Raises:
        ValueError: An argument is out of range, a task does not exist or cannot be made that short, a file is not what
            its reader reads, `out` holds another run, or the model already carries a method.
        OSError: A file can't be read, `out` can't be written, or another run writes there now; finished cells are kept.
        ImportError: A task or metric needs a package that isn't installed.
    """
    console = console or Console()
    check_run(lengths, n, out, depths, batch_tokens=batch_tokens, batch_rows=batch_rows, prefill_tokens=prefill_tokens)
    window = checked_window(model.config.get_text_config(), window, 1)
    carries = bool(getattr(model.config, "hf_longctx", None))
    if method is not None:
        if carries:
            raise ValueError(
                "The model already carries a method in config.hf_longctx, so there is no stock model to compare with. "
                "Load the original checkpoint, or leave out method= to measure the model as it is."
            )
        # a method that refuses this model should do so before the stock model has run for an hour
        with method.running(model):
            pass
        method.check_room(model, max(lengths))
    began = time.perf_counter()
    samples = collect(tokenizer, tasks, lengths, n=n, seed=seed, depths=depths, text=text, cache=cache)
    for (_, length, _), some in samples.items():
        check(some)
        for sample in some if some[0].length is None else some[:1]:
            _check_room(tokenizer, sample, length, window=None if alone else window)
    making = round(time.perf_counter() - began, 1)
    names = _configurations(method, window, alone, "as loaded" if carries else "stock")
    settings: dict[str, Any] = {
        "task": "suite", "tasks": list(tasks), "seed": seed, "text": Path(text).name, "prefill_tokens": prefill_tokens,
        "method": None if method is None else method.spec(), "samples": digest(samples), "window": window,
        "tokenizer": tokenizer_digest(tokenizer),
    }  # fmt: skip
    here = environment(model.device)
    # the digest of the samples tells all of these apart, but not to a reader
    asked = {"lengths": sorted(set(lengths)), "n": n, "depths": depths}
    fingerprint = {**asked, **settings, "model": model_name(model), "weights": weights_digest(model), **here}
    if batch_tokens is None:
        batch_tokens = 2**18 if model.device.type == "cuda" else 1
    keys = {name: {at: _key(kind, at, some, window) for at, some in samples.items()} for name, kind in names.items()}
    with claimed(out):
        store = CellStore(Path(out) / "cells.jsonl", fingerprint)
        _measure(model, tokenizer, method, samples, keys, store, (batch_tokens, batch_rows), prefill_tokens, console)
        cells = {name: {at: store.get(key) for at, key in many.items()} for name, many in keys.items()}
        settings |= {"configurations": list(names), "method_repr": None if method is None else repr(method)}
        settings |= {"seconds_making_samples": making}
        data = results(
            suite_report.rows(cells, window), model=model_name(model), command=command, device=model.device,
            settings=settings,
        )  # fmt: skip
        write_results(Path(out) / "results.json", data)
        suite_report.write_predictions(Path(out) / "predictions.jsonl", samples, cells)
        console.print(suite_report.table(data))
        return data


def check_samples(
    tokenizer: PreTrainedTokenizerBase,
    tasks: Sequence[str],
    lengths: Sequence[int],
    *,
    seed: int = 0,
    depths: Sequence[float] | None = None,
    text: str = "python-docs",
) -> None:
    """ValueError or OSError for tasks that cannot be made so short and files that are wrong, without a model.

    Arguments as in `evaluate_tasks`. One sample of each task is made, at the smallest length.
    """
    length = min(lengths)
    for some in collect(tokenizer, tasks, [length], n=1, seed=seed, depths=depths, text=text).values():
        check(some)
        for sample in some:
            _check_room(tokenizer, sample, length, window=None)


def _check_room(tokenizer: Any, sample: Sample, length: int, window: int | None) -> None:
    """ValueError now for what would not fit after an hour of generating."""
    cuts = [length] if sample.length is None else []
    cuts += [window] if window is not None and window < length else []
    for room in cuts:
        name = "length" if room == length else "window"
        if room <= sample.max_new_tokens:
            other = ", or alone=True to leave the stock model out" if name == "window" else ""
            raise ValueError(
                f"{name}={room}: the answer to a sample of {sample.task} takes {sample.max_new_tokens} tokens of it. "
                f"Use a larger {name}{other}."
            )
        encode(tokenizer, sample, room - sample.max_new_tokens)


def _configurations(method: Any, window: int, alone: bool, stock: str) -> dict[str, str]:
    """{name: kind} of what is measured."""
    if alone:
        return {stock: "stock"} if method is None else {type(method).__name__: "method"}
    found = {stock: "stock", f"last {window:,} tokens": "window"}
    return found if method is None else {**found, type(method).__name__: "method"}


def _key(kind: str, at: tuple[str, int, float | None], samples: Sequence[Sample], window: int) -> tuple[Any, ...]:
    """What is computed: within the window, truncation is the stock model itself."""
    keep = window if kind == "window" and at[1] > window else None
    return ("stock" if kind == "window" else kind, *at, keep)


def _measure(
    model: Any, tokenizer: Any, method: Any, samples: Cells, keys: Mapping[str, Mapping[Any, tuple[Any, ...]]],
    store: CellStore, limits: tuple[int, int | None], prefill_tokens: int | None, console: Console,
) -> None:  # fmt: skip
    waiting: dict[tuple[Any, ...], _Open] = {}
    for many in keys.values():
        for at, key in many.items():
            if key not in store:
                waiting[key] = _Open(key, samples[at], key[-1], [None] * len(samples[at]))
    with Progress("prompts", sum(len(cell.samples) for cell in waiting.values()), console) as progress:
        for kind in ("stock", "method"):
            some = [cell for key, cell in waiting.items() if key[0] == kind]
            with method.running(model) if kind == "method" and some else nullcontext({}) as extra:
                # all tasks of a length share batches
                for length in sorted({cell.key[2] for cell in some}):
                    progress.describe(f"{kind} {length:,}")
                    cells = [cell for cell in some if cell.key[2] == length]
                    if kind == "method" and method.reads_documents:
                        said = _of_documents(model, tokenizer, cells, extra)
                    else:
                        said = _said(model, tokenizer, cells, limits, prefill_tokens, extra)
                    for done in said:
                        progress.advance(done)
                        for cell in [cell for cell in cells if None not in cell.said or cell.failed]:
                            cells.remove(cell)
                            if not cell.failed:
                                store.put(cell.key, _value(cell))


def _said(
    model: Any,
    tokenizer: Any,
    cells: Sequence[_Open],
    limits: tuple[int, int | None],
    prefill_tokens: int | None,
    extra: Mapping[str, Any],
) -> Iterator[int]:
    """Fill the cells' answers batch by batch; yields the number of prompts that were answered."""
    rows: list[_Row] = []
    for cell in cells:
        for i, sample in enumerate(cell.samples):
            # a text that was made for a length loses its beginning, one of a file what its benchmark gives up
            cut = sample if sample.length is None else dataclasses.replace(sample, cut="left")
            rows.append(_Row(cell, i, cut, (cell.keep or cell.key[2]) - sample.max_new_tokens))
    for room in {row.room for row in rows}:
        own = [row for row in rows if row.room == room]
        for row, ids in zip(own, encode_all(tokenizer, [row.sample for row in own], room), strict=True):
            row.ids = ids
    most = [len(rows)]
    for budget in sorted({row.sample.max_new_tokens for row in rows}, reverse=True):
        own = [row for row in rows if row.sample.max_new_tokens == budget]
        for batch in batches([len(row.ids) for row in own], *limits):
            yield from _batch(model, tokenizer, [own[i] for i in batch], budget, prefill_tokens, most, extra)


def _of_documents(model: Any, tokenizer: Any, cells: Sequence[_Open], extra: Mapping[str, Any]) -> Iterator[int]:
    """The same for a procedure that is told where the document is, prompt by prompt."""
    for cell in list(cells):
        for i, sample in enumerate(cell.samples):
            began = time.perf_counter()
            head, document, question = encode_parts(tokenizer, sample)
            room = cell.key[2] - sample.max_new_tokens - len(head) - len(question)
            document = shorten(document, max(room, 1), sample.cut) if sample.length is None else document
            ids = torch.tensor([head + document + question], device=model.device)
            output = model.generate(
                ids, head=len(head), question=len(question),
                generation_config=greedy(model, tokenizer, sample.max_new_tokens), **extra,
            )  # fmt: skip
            cell.said[i] = tokenizer.decode(output[0, ids.shape[1] :], skip_special_tokens=True)
            cell.seconds += time.perf_counter() - began
            yield 1


def _batch(
    model: Any, tokenizer: Any, rows: list[_Row], budget: int, prefill_tokens: int | None, most: list[int],
    extra: Mapping[str, Any],
) -> Iterator[int]:  # fmt: skip
    """Answer some rows; `most` is how many fit into memory as far as is known by now, and falls when they do not."""
    if len(rows) > most[0]:
        half = -(-len(rows) // 2)
        yield from _batch(model, tokenizer, rows[:half], budget, prefill_tokens, most, extra)
        yield from _batch(model, tokenizer, rows[half:], budget, prefill_tokens, most, extra)
        return
    cuda = model.device.type == "cuda"
    if cuda:
        torch.cuda.reset_peak_memory_stats(model.device)
    began, texts = time.perf_counter(), None
    try:
        texts = answer(model, tokenizer, [row.ids for row in rows], budget, prefill_tokens=prefill_tokens, **extra)
    except torch.OutOfMemoryError:
        if len(rows) == 1:
            rows[0].cell.failed = True
    if texts is None:
        # outside the except block, which would keep the failed pass's tensors alive
        if cuda:
            torch.cuda.empty_cache()
        if len(rows) == 1:
            yield 1
            return
        most[0] = -(-len(rows) // 2)
        yield from _batch(model, tokenizer, rows, budget, prefill_tokens, most, extra)
        return
    seconds = time.perf_counter() - began
    peak = torch.cuda.max_memory_allocated(model.device) / 2**30 if cuda else 0.0
    for row, said in zip(rows, texts, strict=True):
        row.cell.said[row.index] = said
        row.cell.seconds += seconds / len(rows)
        row.cell.peak = max(row.cell.peak, peak)
    yield len(rows)


def _value(cell: _Open) -> dict[str, Any]:
    said = [text or "" for text in cell.said]
    total, each = scores(said, cell.samples)
    cost = {"seconds": round(cell.seconds, 3), "peak_gib": round(cell.peak, 3) or None}
    return {"score": total, "scores": each, "groups": _groups(cell.samples, each), "said": said, **cost}


def _groups(samples: Sequence[Sample], each: Sequence[float | None]) -> dict[str, float]:
    """Mean scores of the parts that a benchmark reports, such as difficulties."""
    found: dict[str, list[float]] = {}
    for sample, score in zip(samples, each, strict=True):
        for group in sample.meta.get("groups", ()):
            if score is not None:
                found.setdefault(group, []).append(score)
    return {group: sum(some) / len(some) for group, some in sorted(found.items())}


def check_run(
    lengths: Sequence[int], n: Any, out: Any, depths: Sequence[float] | None = None, **limits: int | None
) -> None:
    """ValueError for what is wrong with a run whatever its model is."""
    if not lengths or min(lengths) < 1:
        raise ValueError(f"lengths={list(lengths)}: give at least one, above 0.")
    for depth in depths or ():
        check_depth(depth)
    counts = list(n.values()) if isinstance(n, Mapping) else [n]
    if any(count is not None and count < 1 for count in counts):
        raise ValueError(f"n={n}: expected at least one sample a cell.")
    missing = [length for length in lengths if isinstance(n, Mapping) and length not in n]
    if missing:
        raise ValueError(f"n={n} has no number for the lengths {missing}. Give one for each length.")
    for name, value in limits.items():
        if value is not None and value < 1:
            raise ValueError(f"{name}={value}: expected at least 1.")
    check_out(out)
