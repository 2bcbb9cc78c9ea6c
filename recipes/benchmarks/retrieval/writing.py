"""After thousands of tokens were written: what is still answered about the prompt, and about what was written."""

# L tokens of a text, V vocabulary
from __future__ import annotations

import copy
import random
from collections.abc import Iterator, Sequence
from statistics import fmean
from typing import Any

import torch
from torch import Tensor
from transformers import LogitsProcessor, LogitsProcessorList

from hf_longctx import stream
from hf_longctx.evaluation.rows import row
from recipes.bars import missed

from .asking import asked
from .facts import FIRST, Question, names, question
from .run import Run

Rows = Iterator[dict[str, Any]]
LESS = ">= -0.02"
OVER = "the time was over before one text was written"


class Dictated(LogitsProcessor):
    """Lets the model write what it likes, except for lines that come at given steps of their own."""

    def __init__(self, lines: Sequence[tuple[int, list[int]]]) -> None:
        self.step = 0
        self.at = {start + i: token for start, line in lines for i, token in enumerate(line)}

    def __call__(self, input_ids: Tensor, scores: Tensor) -> Tensor:
        """The scores, or those of one token alone."""
        token, self.step = self.at.get(self.step), self.step + 1
        if token is None:
            return scores
        only = torch.full_like(scores, float("-inf"))
        only[:, token] = 0
        return only


def written(run: Run) -> Rows:
    """Facts of the prompt are asked for before and after writing; facts that were written, as if they had been read."""
    n, length, facts = run.sizes.written
    before, after, grown, read = ([] for _ in range(4))  # right answers
    detail: dict[str, Any] = {"tokens": length, "facts written in each text": facts}
    documents = run.long({"number": 6, "pass key": 6})
    with run.lookup.on(run.model):
        for seed in range(n):
            if run.time_is_over:
                break
            one = next(documents)
            reader = stream(run.model, one.ids_L, chunk=run.sizes.chunk, bounded=False, look_up=False)
            first = _right(run, reader, one.questions)
            hidden = " ".join(line for each in one.questions for line in each.lines)
            own, lines = _lines(run, facts, length, seed, hidden)
            twin = copy.deepcopy(reader)
            tokens = _write(run, reader, lines, length, seed)
            if tokens is None:
                break
            # as many tokens after it as bring the written ones out of the window too
            later = run.texts.make(run.behind, 5000 + seed)
            reader.read(later, look_up=False)
            twin.read(torch.cat([tokens, later]), look_up=False)
            before += first
            after += _right(run, reader, one.questions)
            grown += _right(run, reader, own)
            read += _right(run, twin, own)
    detail |= {"before": before, "after": after, "written": grown, "the same text read": read}
    for what, now, then, name in (
        (f"of the prompt after {length:,} written tokens, less before them", after, before, "before"),
        (f"of {length:,} written tokens, less those of the same text read", grown, read, "read"),
    ):
        less = fmean(now) - fmean(then) if now else None
        bar = run.bar(LESS, LESS)
        why = missed(less, bar, "the text that was written stands between") if now else OVER
        beside = {"right": fmean(now), name: fmean(then), "questions": len(now)} if now else {}
        yield row(f"{run.reader}, {run.length}: answers right {what}", less, "", bar=bar,
                  why=why, beside=beside, detail=detail)  # fmt: skip


def _right(run: Run, reader: Any, questions: Sequence[Question]) -> list[float]:
    return [asked(run.model, run.encode, copy.deepcopy(reader.cache), one)[0] for one in questions]


def _lines(
    run: Run, facts: int, length: int, seed: int, hidden: str
) -> tuple[list[Question], list[tuple[int, list[int]]]]:
    """Questions about facts whose names share no word with what is hidden, and at which steps each line is written."""
    rng = random.Random(f"written {seed}")
    every = names(rng, 3 * facts + 12, taught=False)
    own = [name for name in every if not set(name.split()) & set(hidden.split())][:facts]
    kinds = [("number", "pass key")[i % 2] for i in range(facts)]
    questions = [question(kind, name, rng, taught=False) for kind, name in zip(kinds, own, strict=True)]
    lines = [run.encode(f"\n{line}\n") for one in questions for line in one.lines]
    room = (length - min(FIRST, length // 8)) // max(len(lines), 1)
    starts = [min(FIRST, length // 8) + i * room + rng.randrange(max(room - len(line), 1))
              for i, line in enumerate(lines)]  # fmt: skip
    return questions, list(zip(starts, lines, strict=True))


def _write(run: Run, reader: Any, lines: list[tuple[int, list[int]]], length: int, seed: int) -> Tensor | None:
    """What is written after a reader's text, token by token; None if the time is over before all of it is."""
    torch.manual_seed(seed)
    dictated, ids = LogitsProcessorList([Dictated(lines)]), []
    # no token has this id, so that nothing ends early
    settings = {"max_new_tokens": length, "do_sample": True, "eos_token_id": run.model.config.vocab_size}
    for token in reader.generate(logits_processor=dictated, **settings):
        ids.append(token)
        if run.time_is_over and len(ids) < length:
            return None
    return torch.tensor(ids)
