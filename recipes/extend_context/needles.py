"""RULER's needle in a text (niah_single_2), made of token ids: a prompt of 64k tokens takes no second to make."""

from __future__ import annotations

import random
from collections.abc import Sequence
from typing import Any

import torch

from hf_longctx.evaluation.answer import answer
from hf_longctx.evaluation.tasks.needles import NEEDLE, ONE
from hf_longctx.evaluation.words import MAKERS, PACKAGES, distinct
from hf_longctx.text.joins import ids_after
from hf_longctx.text.tokens import bos_prefix, encode

ANSWER = 16  # tokens: a number has seven digits
KEYS, VALUES = "words", "numbers"
NEEDS = (*PACKAGES[KEYS], *PACKAGES[VALUES])  # what a prompt is made with


def prompt(tokenizer: Any, hay: Sequence[int], length: int, depth: float, seed: str) -> tuple[list[int], str]:
    """`length - ANSWER` tokens that begin anywhere in the text, a number hidden in them; and the number."""
    rng = random.Random(seed)
    (key,), value = distinct(rng, KEYS, 1), MAKERS[VALUES](rng)
    before, question, start = (part.format(kind=VALUES[:-1], query=key) for part in ONE)
    head = bos_prefix(tokenizer) + encode(tokenizer, before)
    fact = ids_after(tokenizer, "a", f"\n{NEEDLE.format(kind=VALUES, key=key, value=value)}\n")
    tail = ids_after(tokenizer, "a", question + start)
    space = length - ANSWER - len(head) - len(fact) - len(tail)
    if space < 0:
        raise ValueError(f"evaluation: retrieval: {length}: the needle and its question alone take {length - space}.")
    offset = rng.randrange(len(hay))
    text = [hay[(offset + at) % len(hay)] for at in range(space)]
    place = round(depth * space)
    return head + text[:place] + fact + text[place:] + tail, str(value)


def found(
    model: Any, tokenizer: Any, length: int, hay: Sequence[int], depths: Sequence[float], trials: int, batch: int
) -> dict[str, int]:
    """How many of `trials` numbers are found at each depth; `length` is that of prompt and answer."""
    each = [(depth, trial) for depth in depths for trial in range(trials)]
    made = [prompt(tokenizer, hay, length, depth, f"{length}/{depth}/{trial}") for depth, trial in each]
    texts: list[str] = []
    for at in range(0, len(made), batch):
        texts += answer(model, tokenizer, [torch.tensor(ids) for ids, _ in made[at : at + batch]], ANSWER)
    right = {f"{depth:.2f}": 0 for depth in depths}
    for (depth, _), (_, value), text in zip(each, made, texts, strict=True):
        right[f"{depth:.2f}"] += value in text
    return right
