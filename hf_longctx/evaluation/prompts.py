"""Answers to the prompts of many cells, in batches that cells of one length share."""

# L prompt length
from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from .answer import answer, batches, greedy
from .sample import Sample, encode_all, encode_parts, shorten
from .task import Cell, attempt

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

Limits = tuple[int, int | None, int | None]  # prompt tokens and prompts per batch, tokens per forward pass


@dataclass(eq=False)
class _Open:
    """A cell that is being measured."""

    cell: Cell
    samples: Sequence[Sample]
    said: list[str | None]
    seconds: float = 0.0
    peak: float = 0.0
    failed: bool = False

    def take(self, index: int, said: str | None, seconds: float, peak: float | None) -> None:
        """An answer and its cost; None: the prompt did not fit into memory."""
        self.said[index] = said
        self.failed |= said is None
        self.seconds += seconds
        self.peak = max(self.peak, peak or 0.0)


_Row = tuple[_Open, int, Tensor]  # a cell, the index of one of its samples, and the token ids of its prompt


def answered(
    model: Any,
    tokenizer: PreTrainedTokenizerBase,
    asked: Mapping[Cell, Sequence[Sample]],
    limits: Limits,
    progress: Callable[[int], None],
    extra: Mapping[str, Any],
    reads_documents: bool,
) -> Iterator[tuple[Cell, list[str] | None, dict[str, float | None]]]:
    """Each cell with its answers, and their cost, as soon as it has all; None for a cell that did not fit.

    Args:
        model: With the method applied, if one is measured.
        tokenizer: Its tokenizer.
        asked: The samples of cells of one length, whose keys end with the tokens that prompts are cut to, or None.
        limits: Of batches; a batch that does not fit into memory is halved.
        progress: Called with the number of prompts that were answered.
        extra: Further arguments of `generate`.
        reads_documents: Prompts are read one by one, and `generate` is told where the document is.
    """
    waiting = [_Open(cell, samples, [None] * len(samples)) for cell, samples in asked.items()]
    if reads_documents:
        work = _one_by_one(model, tokenizer, waiting, extra)
    else:
        work = _batched(model, tokenizer, waiting, limits, extra)
    for done in work:
        progress(done)
        for one in [one for one in waiting if None not in one.said or one.failed]:
            waiting.remove(one)
            said = None if one.failed else [text or "" for text in one.said]
            yield one.cell, said, {"seconds": round(one.seconds, 3), "peak_gib": one.peak or None}


def _one_by_one(model: Any, tokenizer: Any, cells: Sequence[_Open], extra: Mapping[str, Any]) -> Iterator[int]:
    """Tell `generate` where the document is: `head` tokens before it, `question` tokens after it."""
    for one in list(cells):
        for i, sample in enumerate(one.samples):
            head, document, question = encode_parts(tokenizer, sample)
            room = one.cell.length - sample.max_new_tokens - len(head) - len(question)
            document = shorten(document, max(room, 1), sample.cut) if sample.length is None else document
            ids = torch.tensor([head + document + question], device=model.device)
            given = {"head": len(head), "question": len(question), **extra}
            given["generation_config"] = greedy(model, tokenizer, sample.max_new_tokens)
            output, seconds, peak = attempt(lambda: model.generate(ids, **given), model.device)  # noqa: B023
            new = None if output is None else output[0, ids.shape[1] :]
            said = None if new is None else tokenizer.decode(new, skip_special_tokens=True)
            one.take(i, said, seconds, peak)
            yield 1


def _batched(
    model: Any, tokenizer: Any, cells: Sequence[_Open], limits: Limits, extra: Mapping[str, Any]
) -> Iterator[int]:
    rows: list[_Row] = []
    for one in cells:
        # a text that was made for a length loses its beginning, one of a file what its benchmark gives up
        cut = [s if s.length is None else dataclasses.replace(s, cut="left") for s in one.samples]
        rooms = [(one.cell.key[-1] or one.cell.length) - sample.max_new_tokens for sample in cut]
        rows += [(one, i, ids) for i, ids in enumerate(encode_all(tokenizer, cut, rooms))]
    most, given = [len(rows)], {"prefill_tokens": limits[2], **extra}
    budgets = [one.samples[i].max_new_tokens for one, i, _ in rows]
    for budget in sorted(set(budgets), reverse=True):
        own = [row for row, tokens in zip(rows, budgets, strict=True) if tokens == budget]
        for batch in batches([len(ids) for _, _, ids in own], *limits[:2]):
            yield from _batch(model, tokenizer, [own[i] for i in batch], budget, most, given)


def _batch(
    model: Any, tokenizer: Any, rows: list[_Row], budget: int, most: list[int], given: Mapping[str, Any]
) -> Iterator[int]:
    """Answer some rows; `most` is how many fit into memory as far as is known by now, and falls when they do not."""
    if len(rows) > most[0]:
        half = -(-len(rows) // 2)
        yield from _batch(model, tokenizer, rows[:half], budget, most, given)
        yield from _batch(model, tokenizer, rows[half:], budget, most, given)
        return
    prompts = [ids for _, _, ids in rows]
    texts, seconds, peak = attempt(lambda: answer(model, tokenizer, prompts, budget, **given), model.device)
    if texts is None and len(rows) > 1:
        most[0] = -(-len(rows) // 2)
        yield from _batch(model, tokenizer, rows, budget, most, given)
        return
    for at, (one, i, _) in enumerate(rows):
        one.take(i, texts[at] if texts else None, seconds / len(rows), peak)
    yield len(rows)
