"""One evaluation: the stock model, the stock model on what fits its window, and a method, on the same texts.

Finished cells are kept in `cells.jsonl` as they come, so an interrupted run goes on where it stopped.
"""

from __future__ import annotations

import hashlib
import json
import time
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

import torch
from rich.console import Console
from torch import Tensor

from ..console.progress import Progress
from ..near import did_you_mean
from ..storage.cells import CellStore
from ..storage.files import claimed
from ..storage.fingerprint import weights_digest
from ..text.corpora import beginning_ids, is_large, load_text, read_documents, tokenize_documents
from ..text.tokens import bos_prefix
from .passkey import MAX_NEW_TOKENS, check_cell, haystack_ids, passkey_cell, passkey_prompts
from .perplexity import check_lengths, fixed_targets
from .report import plots
from .report import run as report
from .results import check_out, environment, results, write_results

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

TASKS = ("ppl", "passkey")
DEPTHS = (0.0, 0.25, 0.5, 0.75, 1.0)


class Method(Protocol):
    """What a method has to offer to be measured."""

    def on(self, model: Any) -> AbstractContextManager[Any]: ...

    def spec(self) -> dict[str, Any]: ...


@dataclass(frozen=True)
class _Job:
    """A cell to be measured. `key` names what is computed, so two configurations may share one."""

    key: tuple[Any, ...]
    tokens: int
    work: Callable[[Callable[[int], None]], dict[str, Any]]


# {configuration: {(length, depth or document): job}}
_Jobs = dict[str, dict[tuple[Any, ...], _Job]]


def evaluate(
    model: Any,
    tokenizer: PreTrainedTokenizerBase,
    *,
    task: str,
    lengths: Sequence[int],
    method: Method | None = None,
    out: str | Path,
    text: str = "python-docs",
    seed: int = 0,
    window: int | None = None,
    n_targets: int = 1024,
    documents: int = 4,
    chunk: int = 4096,
    score_chunk: int = 1024,
    depths: Sequence[float] = DEPTHS,
    trials: int = 10,
    batch_size: int = 1,
    haystack: str = "filler",
    prefill_chunk_size: int | None = None,
    command: str | None = None,
    console: Console | None = None,
) -> dict[str, Any]:
    """Measure, write `results.json`, `cells.jsonl` and `figure.png` into `out`, print a table, return the results.

    The configurations are the model as it is on every length, the same on the last tokens that fit `window`
    (truncation, the baseline any user has), and the method. A configuration that runs out of GPU memory at some length
    is reported so, and tried again by the next run.

    Args:
        model: A causal language model in eval mode, without a method applied.
        tokenizer: Its tokenizer.
        task: "ppl" (the same last tokens of `documents` spans of `text`, see `fixed_targets`) or "passkey" (see
            `passkey_cell`).
        lengths: Context lengths in tokens.
        method: Compared with the model as it is; applied while its cells run and taken off again.
        out: Folder of the results; the same arguments and folder resume an interrupted run.
        text: See `load_text`. The passkey task reads it when `haystack` is "text". Of a file of more than a mebibyte no
            more is read than the lengths need: documents spread over it, or its beginning for passkeys.
        seed: Of the passkey prompts.
        window: Trained length in tokens; the config's `max_position_embeddings` by default.
        n_targets, documents, chunk, score_chunk: Of the task "ppl".
        depths, trials, batch_size, prefill_chunk_size: Of the task "passkey".
        haystack: "filler", or "text" to hide the key in `text`.
        command: What to record as the command; this process's own by default.
        console: Where the table goes, and the progress bar if that is a terminal (see `progress.Progress`).

    Raises:
        ImportError: matplotlib isn't installed.
        ValueError: An argument is out of range, the text is too short, `out` holds another run, or the model already
            carries a method.
        OSError: `out` can't be written, or another run writes there now; finished cells are kept.
    """
    plots.require_matplotlib()
    check_out(out)
    lengths, depths = checked_grid(task, lengths, depths, haystack=haystack, trials=trials, n_targets=n_targets)
    config = model.config.get_text_config()
    window = checked_window(config, window, n_targets if task == "ppl" else MAX_NEW_TOKENS)
    if method is not None:
        if getattr(model.config, "hf_longctx", None):
            raise ValueError(
                "The model already carries a method in config.hf_longctx, so there is no stock model to compare with. "
                "Load the original checkpoint, or leave out method= to measure the model as it is."
            )
        # A method that refuses this model should do so before the stock model has run for an hour.
        with method.on(model):
            pass
    names = ["as loaded" if getattr(model.config, "hf_longctx", None) else "stock", f"last {window:,} tokens"]
    names += [type(method).__name__] if method is not None else []
    settings: dict[str, Any] = {"task": task, "seed": seed, "method": None if method is None else method.spec()}
    if task == "ppl":
        ids_NL = _documents(tokenizer, text, max(lengths), documents)
        bos = bos_prefix(tokenizer)
        settings |= {"text": Path(text).name, "n_targets": n_targets, "documents": documents}
        settings |= {
            "chunk": chunk,
            "score_chunk": score_chunk,
            "bos": bos,
            "token_ids": _sha(ids_NL.numpy().tobytes()),
        }
        jobs = _perplexity_jobs(
            model, ids_NL, lengths, names, window, n_targets=n_targets, bos_token_id=bos[0] if bos else None,
            chunk=chunk, score_chunk=score_chunk,
        )  # fmt: skip
    else:
        # of a large file, enough for prompts that have nothing in common
        hay = _hay(tokenizer, haystack, text, max(lengths) * trials)
        _check_prompts(tokenizer, lengths, depths, hay, trials=trials, seed=seed)
        settings |= {"text": "filler" if haystack == "filler" else Path(text).name, "trials": trials}
        settings |= {"prefill_chunk_size": prefill_chunk_size, "token_ids": _sha(json.dumps(hay).encode())}
        jobs = _passkey_jobs(
            model, tokenizer, lengths, depths, names, window, trials=trials, seed=seed, batch_size=batch_size,
            haystack="filler" if haystack == "filler" else hay, prefill_chunk_size=prefill_chunk_size,
        )  # fmt: skip
    here = environment(model.device)
    # cells of older code or other hardware do not belong beside new ones
    fingerprint = {**settings, "model": model_name(model), "weights": weights_digest(model), **here}
    console = console or Console()
    with claimed(out):
        store = CellStore(Path(out) / "cells.jsonl", fingerprint)
        cells = _measure_all(jobs, store, model, method, console)

        if task == "ppl":
            rows = report.perplexity_rows(cells, lengths, documents, n_targets=n_targets)
        else:
            rows = report.passkey_rows(cells, lengths, depths)
        settings |= {"window": window, "configurations": names, "method_repr": None if method is None else repr(method)}
        found = results(rows, model=model_name(model), command=command, device=model.device, settings=settings)
        write_results(Path(out) / "results.json", found)
        console.print(report.table(found))
        # Nothing to draw if nothing fitted into memory or came out finite.
        if any(value is not None for line in rows for value in (line["value"], *line["beside"].values())):
            plots.save(report.figure(found), Path(out) / "figure.png")
        return found


def _perplexity_jobs(
    model: Any, ids_NL: Tensor, lengths: Sequence[int], names: Sequence[str], window: int, **options: Any
) -> _Jobs:
    def job(kind: str, length: int, index: int) -> _Job:
        def work(progress: Callable[[int], None]) -> dict[str, Any]:
            (score,) = fixed_targets(model, [ids_NL[index]], [length], progress=progress, **options)
            return {"nll": score.nll[0]}

        # The last token is never read.
        return _Job((kind, length, index), length - 1, work)

    # Within the window truncation changes nothing, and beyond it the length doesn't matter.
    kinds = [("stock", None), ("stock", window), ("method", None)]
    return {
        name: {(n, i): job(kind, min(n, cut or n), i) for n in lengths for i in range(len(ids_NL))}
        for name, (kind, cut) in zip(names, kinds, strict=False)
    }


def _passkey_jobs(
    model: Any, tokenizer: Any, lengths: Sequence[int], depths: Sequence[float], names: Sequence[str], window: int,
    **options: Any,
) -> _Jobs:  # fmt: skip
    def job(kind: str, length: int, depth: float, keep: int | None) -> _Job:
        keep = keep if keep is not None and keep < length else None

        def work(progress: Callable[[int], None]) -> dict[str, Any]:
            cell = passkey_cell(model, tokenizer, length, depth, keep_last=keep, progress=progress, **options)
            return {"correct": cell.correct, "trials": cell.trials}

        return _Job((kind, length, depth, keep), length * options["trials"], work)

    # The answer has to fit the window as well.
    kinds = [("stock", None), ("stock", window - MAX_NEW_TOKENS), ("method", None)]
    return {
        name: {(n, d): job(kind, n, d, keep) for n in lengths for d in depths}
        for name, (kind, keep) in zip(names, kinds, strict=False)
    }


def _measure_all(jobs: _Jobs, store: CellStore, model: Any, method: Method | None, console: Console) -> report.Cells:
    todo = {job.key: job for cells in jobs.values() for job in cells.values() if job.key not in store}
    by_kind = {kind: [job for job in todo.values() if job.key[0] == kind] for kind in ("stock", "method")}
    with Progress("tokens", sum(job.tokens for job in todo.values()), console) as progress:
        for kind, waiting in by_kind.items():
            if not waiting:
                continue
            with method.on(model) if kind == "method" and method is not None else nullcontext():
                for job in waiting:
                    progress.describe(f"{kind} {job.key[1]:,}")
                    value = _measured(job, model.device, progress.advance)
                    if value is not None:
                        store.put(job.key, value)
    return {name: {at: store.get(job.key) for at, job in cells.items()} for name, cells in jobs.items()}


def _measured(job: _Job, device: torch.device, progress: Callable[[int], None]) -> dict[str, Any] | None:
    """The cell with its seconds and peak GPU memory in GiB, or None if the memory didn't suffice."""
    cuda = device.type == "cuda"
    if cuda:
        torch.cuda.reset_peak_memory_stats(device)
    start = time.perf_counter()
    try:
        value = job.work(progress)
    except torch.OutOfMemoryError:
        value = None
    if value is None:
        # Outside the except block, which would keep the failed pass's tensors alive.
        torch.cuda.empty_cache()
        return None
    seconds = round(time.perf_counter() - start, 3)
    peak = round(torch.cuda.max_memory_allocated(device) / 2**30, 3) if cuda else None
    return {**value, "seconds": seconds, "peak_gib": peak}


def checked_grid(
    task: str,
    lengths: Sequence[int],
    depths: Sequence[float],
    *,
    haystack: str = "filler",
    trials: int = 10,
    n_targets: int = 1024,
) -> tuple[list[int], list[float]]:
    """Lengths and depths in order, each once; ValueError for what no tokenizer could make of them."""
    if task not in TASKS:
        raise ValueError(f'task="{task}": {did_you_mean(task, TASKS)}expected one of {", ".join(TASKS)}.')
    if haystack not in ("filler", "text"):
        raise ValueError(f'haystack="{haystack}": expected "filler", or "text" to hide the key in text=.')
    if not lengths or min(lengths) < 1 or not depths:
        raise ValueError(f"lengths={list(lengths)}, depths={list(depths)}: give at least one of each, lengths above 0.")
    if task == "ppl":
        check_lengths(lengths, n_targets)
    else:
        for depth in depths:
            check_cell(depth, trials)
    return sorted(set(lengths)), sorted({float(depth) for depth in depths})


def check_texts(
    tokenizer: PreTrainedTokenizerBase,
    task: str,
    lengths: Sequence[int],
    depths: Sequence[float],
    *,
    text: str = "python-docs",
    haystack: str = "filler",
    documents: int = 4,
) -> None:
    """ValueError or OSError for a text that is too short for perplexity, or a length for passkeys, without a model.

    Arguments as in `evaluate`.
    """
    if task == "ppl":
        _documents(tokenizer, text, max(lengths), documents)
    else:
        _check_prompts(tokenizer, lengths, depths, _hay(tokenizer, haystack, text, max(lengths)), trials=1, seed=0)


def _documents(tokenizer: Any, text: str, length: int, n: int) -> Tensor:
    if is_large(text):
        return read_documents(tokenizer, text, length, n)
    return tokenize_documents(tokenizer, load_text(text), length, n)


def _hay(tokenizer: Any, haystack: str, text: str, most: int) -> list[int]:
    """What a passkey is hidden in: the whole text, or as many tokens of a large file."""
    if haystack == "filler":
        return haystack_ids(tokenizer, "filler")
    return haystack_ids(tokenizer, beginning_ids(tokenizer, text, most) if is_large(text) else load_text(text))


def _check_prompts(
    tokenizer: Any, lengths: Sequence[int], depths: Sequence[float], hay: Sequence[int], *, trials: int, seed: int
) -> None:
    """ValueError for a length that holds no prompt, before anything is written."""
    for depth in depths:
        passkey_prompts(tokenizer, min(lengths), depth, trials=trials, seed=seed, haystack=hay)


def checked_window(config: Any, window: int | None, at_least: int) -> int:
    """The trained length, the config's if it isn't given; ValueError if there is none or it holds nothing."""
    window = getattr(config, "max_position_embeddings", None) if window is None else window
    if window is None:
        raise ValueError(
            "The config has no max_position_embeddings. Pass window=, the length the model was trained for."
        )
    if window <= at_least:
        raise ValueError(
            f"window={window} holds nothing beside the {at_least} tokens that are scored or generated. "
            "Pass a larger window=, or fewer n_targets= for perplexity."
        )
    return int(window)


def model_name(model: Any) -> str:
    """The name a model is quoted by in results."""
    revision = getattr(model.config, "_commit_hash", None)
    name = getattr(model.config, "_name_or_path", "")
    # Where a folder lies is nobody's business but its owner's.
    name = Path(name).name if Path(name).is_dir() else name
    name = name or f"{type(model).__name__} {weights_digest(model)}"
    return f"{name}@{revision}" if revision else name


def _sha(data: bytes) -> str:
    return hashlib.sha256(data).hexdigest()[:16]
