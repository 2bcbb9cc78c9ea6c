"""A reader that answers: a small model taught to answer questions about facts that stand in its own window.

What a method of look-ups finds can be told from what the model cannot read only if it answers inside its window. The
reader is made again in each run of a benchmark, which may keep it on its own machine.
"""

# B rows, L tokens of a row, N answer tokens
from __future__ import annotations

import random
import time
from collections import deque
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from .haystacks import PIECE, Haystacks
from .hydragen import cast_
from .retrieval.facts import KINDS, Encode, Question, hide, questions

SINGLE = KINDS[:2]
SCORED = 512  # tokens of each row whose text counts too
EACH = 100  # tokens of a row for each of its questions, at least


@dataclass(frozen=True, kw_only=True)
class Lesson:
    """How a reader is taught.

    Args:
        seed: Of the texts, facts and places.
        steps: At most.
        seconds: At most. Over the steps or these, whichever end sooner, the rate falls to a twentieth: a reader
            that is taught until its loss is low, at a high rate, answers one in ten questions in other words wrongly.
        over: How many last steps the answers' loss is averaged over.
        tokens: Of a step.
        lengths: Of its rows; one is drawn for each step. The longest are twice as long as the distance at which found
            tokens are read.
        rate: The learning rate.
        text: The share of the text's own loss beside the answers', so that the model stays one of text.
    """

    seed: int = 0
    steps: int = 1500
    seconds: float = 420.0
    over: int = 50
    tokens: int = 16384
    lengths: tuple[int, ...] = (1024, 2048, 4096, 8192)
    rate: float = 6e-4
    text: float = 0.3


def teach_(model: Any, encode: Encode, texts: Haystacks, lesson: Lesson) -> dict[str, Any]:
    """Tune a model in place. Returns what it took: steps, tokens, seconds, and the answers' loss at the end."""
    dtype, rng, start = model.dtype, random.Random(lesson.seed), time.monotonic()
    picks = torch.Generator().manual_seed(lesson.seed)
    cast_(model, torch.float32)
    model.train()
    gpu = model.device.type == "cuda"
    optimizer = torch.optim.AdamW(model.parameters(), lr=lesson.rate, betas=(0.9, 0.95), weight_decay=0.0, fused=gpu)
    recent: deque[float] = deque(maxlen=lesson.over)
    step = done = 0
    try:
        while step < lesson.steps and time.monotonic() - start < lesson.seconds:
            length = rng.choice(lesson.lengths)
            ids_BL, labels_BL = (x.to(model.device) for x in batch(encode, texts, rng, length, lesson.tokens))
            over = max(step / lesson.steps, (time.monotonic() - start) / lesson.seconds)
            rate = lesson.rate * min(1.0, (step + 1) / 20) * max(0.05, 1 - over)
            for group in optimizer.param_groups:
                group["lr"] = rate
            with torch.autocast(model.device.type, torch.bfloat16, enabled=gpu):
                answers, text = losses(model, ids_BL, labels_BL, picks)
            (answers + lesson.text * text).backward()
            torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
            optimizer.step()
            optimizer.zero_grad(set_to_none=True)
            recent.append(float(answers.detach()))
            step, done = step + 1, done + ids_BL.numel()
            if step % 100 == 0:
                print(f"reader: step {step}, answers' loss {sum(recent) / len(recent):.4f}", flush=True)
    finally:
        cast_(model, dtype)
        model.eval()
    seconds = round(time.monotonic() - start, 1)
    loss = sum(recent) / len(recent) if recent else None
    return {"seed": lesson.seed, "steps": step, "tokens": done, "seconds": seconds, "answers' loss": loss}


def losses(model: Any, ids_BL: Tensor, labels_BL: Tensor, picks: torch.Generator) -> tuple[Tensor, Tensor]:
    """The mean loss of the answers' tokens, and of some tokens of the text."""
    hidden_BLD = model.get_decoder()(input_ids=ids_BL, use_cache=False).last_hidden_state[:, :-1]
    head, next_BL = model.get_output_embeddings(), ids_BL[:, 1:]
    asked_BL = labels_BL[:, 1:] != -100
    answers = F.cross_entropy(head(hidden_BLD[asked_BL]).float(), next_BL[asked_BL])
    some = torch.randint(next_BL.shape[1], (min(SCORED, next_BL.shape[1]),), generator=picks).to(ids_BL.device)
    return answers, F.cross_entropy(head(hidden_BLD[:, some]).float().flatten(0, 1), next_BL[:, some].flatten())


def batch(encode: Encode, texts: Haystacks, rng: random.Random, length: int, tokens: int) -> tuple[Tensor, Tensor]:
    """Rows of `length` ids, `tokens` in all, and labels, which are -100 except for answers; (B, L) each."""
    rows = [row(encode, texts, rng, length) for _ in range(max(tokens // length, 1))]
    ids, labels = zip(*rows, strict=True)
    return torch.stack(ids), torch.stack(labels)


def row(encode: Encode, texts: Haystacks, rng: random.Random, length: int) -> tuple[Tensor, Tensor]:
    """A text with facts, then the questions about them with their answers.

    There are as many as the row has room for, or fewer: with six in each row a reader of 900 steps answered .79 of the
    numbers inside its window, in words that it was not taught, and with more .95.
    """
    number = rng.randint(2, max(length // EACH, 6))
    kinds = rng.choices(SINGLE, k=number) + rng.choices(KINDS[2:], k=rng.randint(0, max(number // 6, 1)))
    asking: list[Question] = []
    ids: list[int] = []
    labels: list[int] = []
    taken = 0
    made = questions(kinds, rng, taught=True)
    for one in rng.sample(made, len(made)):
        asked, answer = encode(f"\n{one.asked}"), [i for part in one.answers for i in encode(f" {part}")]
        taken += len(asked) + len(answer) + sum(len(encode(f"\n{line}\n")) for line in one.lines)
        if asking and taken > length // 2:  # the rest is text
            break
        asking.append(one)
        ids += asked + answer
        labels += [-100] * len(asked) + answer
    room = length - len(ids)
    start = rng.randrange(PIECE)
    hay_L = texts.make(start + room, rng.getrandbits(40))[start:]
    text = hide(hay_L, asking, encode, rng)
    return torch.cat([text, torch.tensor(ids)]), torch.tensor([-100] * room + labels)
