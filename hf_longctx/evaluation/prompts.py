"""Answers to the prompts of many cells, in batches that cells of one length share."""

# L prompt length
from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, NamedTuple

import torch
from torch import Tensor

from .answer import answer, batches, greedy
from .sample import Sample, encode_all, encode_parts, shorten
from .task import Cell, attempt

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

Advance = Callable[[int], None]
Answered = tuple[Cell, list[str] | None, dict[str, float | None]]


class Batching(NamedTuple):
    """Prompt tokens and prompts per batch, and the tokens of it that one forward pass reads."""

    tokens: int
    rows: int | None
    prefill: int | None

    @classmethod
    def of(cls, model: Any, tokens: int | None, rows: int | None, prefill: int | None) -> Batching:
        """With the default of the model's device: 262,144 tokens on a GPU, one prompt on a CPU."""
        return cls(tokens or (2**18 if model.device.type == "cuda" else 1), rows, prefill)


@dataclass(eq=False)
class _Open:
    """A cell that is being measured."""

    cell: Cell
    samples: Sequence[Sample]
    said: list[str | None]
    seconds: float = 0.0
    peak: float = 0.0
    failed: bool = False

    def finished(self) -> Answered:
        cost = {"seconds": round(self.seconds, 3), "peak_gib": self.peak or None}
        return self.cell, None if self.failed else [text or "" for text in self.said], cost


@dataclass(eq=False)
class _Row:
    """A prompt of a cell."""

    open: _Open
    index: int
    sample: Sample
    room: int
    ids: Tensor = field(default_factory=lambda: torch.empty(0))


def answered(
    model: Any,
    tokenizer: PreTrainedTokenizerBase,
    asked: Mapping[Cell, Sequence[Sample]],
    batching: Batching,
    extra: Mapping[str, Any],
    progress: Advance,
) -> Iterator[Answered]:
    """Each cell with its answers, and what they cost, as soon as it has all; None for a cell that did not fit.

    A cell's key ends with the number of tokens that its prompts are cut to, or None.

    Args:
        model: With the method applied, if one is measured.
        tokenizer: Its tokenizer.
        asked: The samples of cells of one length.
        batching: Sizes of batches; a batch that does not fit into memory is halved.
        extra: Arguments of `generate` for a procedure, which reads prompts one by one.
        progress: Called with the number of prompts that were answered.
    """
    waiting = [_Open(cell, samples, [None] * len(samples)) for cell, samples in asked.items()]
    work = _one_by_one(model, tokenizer, waiting, extra) if extra else _batched(model, tokenizer, waiting, batching)
    for done in work:
        progress(done)
        for one in [one for one in waiting if None not in one.said or one.failed]:
            waiting.remove(one)
            yield one.finished()


def _one_by_one(model: Any, tokenizer: Any, cells: Sequence[_Open], extra: Mapping[str, Any]) -> Iterator[int]:
    """A procedure is told where the document is: `head` tokens before it, `question` tokens after it."""
    for one in list(cells):
        for i, sample in enumerate(one.samples):
            head, document, question = encode_parts(tokenizer, sample)
            room = one.cell.length - sample.max_new_tokens - len(head) - len(question)
            document = shorten(document, max(room, 1), sample.cut) if sample.length is None else document
            ids = torch.tensor([head + document + question], device=model.device)
            parts = {"head": len(head), "question": len(question)}
            config = greedy(model, tokenizer, sample.max_new_tokens)
            output, seconds, peak = attempt(
                lambda: model.generate(ids, generation_config=config, **parts, **extra),  # noqa: B023
                model.device,
            )
            one.seconds += seconds
            one.peak = max(one.peak, peak or 0.0)
            if output is None:
                one.failed = True
                yield len(one.samples) - i
                break
            one.said[i] = tokenizer.decode(output[0, ids.shape[1] :], skip_special_tokens=True)
            yield 1


def _batched(model: Any, tokenizer: Any, cells: Sequence[_Open], batching: Batching) -> Iterator[int]:
    rows: list[_Row] = []
    for one in cells:
        for i, sample in enumerate(one.samples):
            # a text that was made for a length loses its beginning, one of a file what its benchmark gives up
            cut = sample if sample.length is None else dataclasses.replace(sample, cut="left")
            rows.append(_Row(one, i, cut, (one.cell.key[-1] or one.cell.length) - sample.max_new_tokens))
    for room in {row.room for row in rows}:
        own = [row for row in rows if row.room == room]
        for row, ids in zip(own, encode_all(tokenizer, [row.sample for row in own], room), strict=True):
            row.ids = ids
    most = [len(rows)]
    for budget in sorted({row.sample.max_new_tokens for row in rows}, reverse=True):
        own = [row for row in rows if row.sample.max_new_tokens == budget]
        for batch in batches([len(row.ids) for row in own], batching.tokens, batching.rows):
            yield from _batch(model, tokenizer, [own[i] for i in batch], budget, batching.prefill, most)


def _batch(
    model: Any, tokenizer: Any, rows: list[_Row], budget: int, prefill: int | None, most: list[int]
) -> Iterator[int]:
    """Answer some rows; `most` is how many fit into memory as far as is known by now, and falls when they do not."""
    if len(rows) > most[0]:
        half = -(-len(rows) // 2)
        yield from _batch(model, tokenizer, rows[:half], budget, prefill, most)
        yield from _batch(model, tokenizer, rows[half:], budget, prefill, most)
        return
    prompts = [row.ids for row in rows]
    texts, seconds, peak = attempt(
        lambda: answer(model, tokenizer, prompts, budget, prefill_tokens=prefill), model.device
    )
    if texts is None and len(rows) > 1:
        most[0] = -(-len(rows) // 2)
        yield from _batch(model, tokenizer, rows, budget, prefill, most)
        return
    for i, row in enumerate(rows):
        row.open.failed |= texts is None
        row.open.said[row.index] = texts[i] if texts else None
        row.open.seconds += seconds / len(rows)
        row.open.peak = max(row.open.peak, peak or 0.0)
    yield len(rows)
