"""RULER's eleven tasks: the method and LM-Infinite at 64k, and the stock model in its own window."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import nullcontext
from pathlib import Path
from statistics import fmean
from typing import Any

from hf_longctx import stream
from hf_longctx.evaluation.answer import answer, greedy
from hf_longctx.evaluation.catalogue import RULER, packages, samples
from hf_longctx.evaluation.metrics import score
from hf_longctx.evaluation.rows import row
from hf_longctx.evaluation.sample import Sample, encode_all, encode_parts
from hf_longctx.text.corpora import load_text
from hf_longctx.text.tokens import CHAT_TEMPLATES
from recipes.bars import missed

from ..ruler import TEXT
from .run import Run

Rows = Iterator[dict[str, Any]]
AT_ONCE = 2**17  # tokens of a batch that are read at once
CODES, WINDOW, STOCK = "codes", "LM-Infinite", "stock, in its window"


def ruler(run: Run) -> Rows:
    """A row a task, score of 100, and the average. Documents are read without look-ups; questions look up.

    Where the time is over, all tasks have the same number of samples.
    """
    (long, inside), haystack, n = run.sizes.ruler_lengths, load_text(_text(run)), run.sizes.ruler
    found: dict[str, dict[str, list[float]]] = {name: {} for name in (CODES, WINDOW, STOCK)}
    asked = {task: samples(task, run.tokenizer, long, n, haystack=haystack) for task in RULER}
    for task, some in asked.items():
        found[WINDOW][task] = _batch(run, run.window, some)
        found[STOCK][task] = _batch(run, None, samples(task, run.tokenizer, inside, n, haystack=haystack))
        run.free()
    rounds = 0
    with run.lookup.on(run.model):
        while rounds < n and not run.time_is_over:
            for task, some in asked.items():
                found[CODES].setdefault(task, []).append(_looked_up(run, some[rounds]))
            rounds += 1
    means = {name: {task: fmean(each[: rounds or n]) for task, each in of.items()} for name, of in found.items()}
    others, detail = (WINDOW, STOCK), {"samples": rounds, STOCK: f"{inside:,} tokens"}
    over = None if rounds else "the time was over"
    for task in RULER:
        yield row(f"{run.reader}, RULER, {task}, {long:,} tokens", means[CODES].get(task), "of 100", why=over,
                  beside={name: means[name][task] for name in others}, detail=detail)  # fmt: skip
    average = {name: fmean(of.values()) if of else None for name, of in means.items()}
    bar = run.at_length(long, ">= 20")
    why = over or missed(average[CODES], bar, "tasks other than single facts are not found again")
    yield row(f"{run.reader}, RULER, average of {len(RULER)} tasks, {long:,} tokens", average[CODES], "of 100",
              bar=bar, why=why, beside={name: average[name] for name in others}, detail=detail)  # fmt: skip


ruler.packages = (*packages(RULER), CHAT_TEMPLATES)


def _batch(run: Run, method: Any, some: Sequence[Sample]) -> list[float]:
    """The scores of the stock model, or under a method without look-ups."""
    with method.on(run.model) if method is not None else nullcontext():
        prompts = encode_all(run.tokenizer, some)
        said = answer(run.model, run.tokenizer, prompts, some[0].max_new_tokens, prefill_tokens=AT_ONCE)
    return [_points(words, one) for words, one in zip(said, some, strict=True)]


def _looked_up(run: Run, one: Sample) -> float:
    """The score of an answer to a prompt whose question alone looks up."""
    before, document, after = encode_parts(run.tokenizer, one)
    reader = stream(run.model, before + document, chunk=run.sizes.chunk, bounded=False, look_up=False)
    reader.read(after)
    config = greedy(run.model, run.tokenizer, one.max_new_tokens)
    said = run.tokenizer.decode(list(reader.generate(generation_config=config)), skip_special_tokens=True)
    return _points(str(said), one)


def _points(said: str, one: Sample) -> float:
    return 100 * (score(said, one) or 0.0)


def _text(run: Run) -> str | Path:
    """The haystack of the other RULER benchmark, or the first text there is."""
    if run.documents is None:
        return "python-docs"
    own = run.documents / f"{TEXT}.txt"
    return own if own.is_file() else min(run.documents.glob("*.txt"))
