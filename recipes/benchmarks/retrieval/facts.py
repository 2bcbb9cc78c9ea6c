"""Facts to hide in a text and the questions about them: numbers, pass keys, several values of a key, chains.

A reader is taught with some wordings and words, and asked with others.
"""

# L tokens of a text
from __future__ import annotations

import random
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Any

import torch
from torch import Tensor

from hf_longctx.evaluation.words import a_number, letters

from .wordings import (
    ASKED_CHAIN,
    ASKED_VALUES,
    ASKED_WORDS,
    NUMBER,
    PASS_KEY,
    TAUGHT,
    TAUGHT_CHAINS,
    TAUGHT_VALUES,
    TAUGHT_WORDS,
)

KINDS = ("number", "pass key", "values", "chain")
VALUES, LINKS = 3, 3  # of a key, and variables of a chain
CAPITALS = "ABCDEFGHIJKLMNOPQRSTUVWXYZ"
FIRST = 300  # tokens of a text without facts: codes are centred by the first 256
Encode = Callable[[str], list[int]]


@dataclass(frozen=True)
class Question:
    """Lines to hide in their order, what is asked about them, and the parts of the answer, each right or wrong."""

    kind: str
    lines: tuple[str, ...]
    asked: str
    answers: tuple[str, ...]


def names(rng: random.Random, n: int, taught: bool) -> list[str]:
    """`n` different names, an adjective and a noun each. Those that are asked about share no word, as in RULER."""
    first, second = (words.split() for words in (TAUGHT_WORDS if taught else ASKED_WORDS))
    if not taught:
        return [f"{a} {b}" for a, b in zip(rng.sample(first, n), rng.sample(second, n), strict=True)]
    pairs = rng.sample(range(len(first) * len(second)), n)  # these may share one, which is harder
    return [f"{first[i // len(second)]} {second[i % len(second)]}" for i in pairs]


def question(kind: str, name: str, rng: random.Random, taught: bool) -> Question:
    """One question of a kind of KINDS."""
    if kind == "chain":
        first, further, asked = rng.choice(TAUGHT_CHAINS) if taught else ASKED_CHAIN
        value, own = a_number(rng, 5), [letters(rng, 4, CAPITALS) for _ in range(LINKS)]
        later = [further.format(a=a, b=b) for a, b in pairwise(own)]
        return Question(kind, (first.format(a=own[0], v=value), *later), asked.format(n=LINKS, v=value), tuple(own))
    digits = rng.randrange(4, 8) if taught else 5 if kind == "pass key" else 7
    values = [a_number(rng, digits) for _ in range(VALUES if kind == "values" else 1)]
    single = rng.choice(TAUGHT) if taught else PASS_KEY if kind == "pass key" else NUMBER
    several = rng.choice(TAUGHT_VALUES) if taught else ASKED_VALUES
    fact, asked = several if kind == "values" else single
    lines = tuple(fact.format(k=name, v=value) for value in values)
    return Question(kind, lines, asked.format(k=name, n=len(values)), tuple(values))


def questions(kinds: Sequence[str], rng: random.Random, taught: bool) -> list[Question]:
    """A question of each kind, about different names."""
    own = names(rng, len(kinds), taught)
    return [question(kind, name, rng, taught) for kind, name in zip(kinds, own, strict=True)]


def encoder(tokenizer: Any) -> Encode:
    """Text to token ids without special ones."""
    return lambda text: list(tokenizer(text, add_special_tokens=False)["input_ids"])


def hide(
    hay_L: Tensor,
    questions: Sequence[Question],
    encode: Encode,
    rng: random.Random,
    before: int | None = None,
    depth: float | None = None,
) -> Tensor:
    """A text of as many tokens as `hay_L`, which takes the place of its last ones by the lines of the questions.

    Args:
        hay_L: Token ids.
        questions: Their lines stand between its tokens in a random order; those of one question in theirs.
        encode: Text to token ids.
        rng: Makes places and order.
        before: At least so many tokens stand behind the last line.
        depth: 0 to 1: all lines stand there instead.

    Raises:
        ValueError: The text is too short for the lines.
    """
    order = [i for i, one in enumerate(questions) for _ in one.lines]
    rng.shuffle(order)
    left = [iter(one.lines) for one in questions]
    lines = [encode(f"\n{next(left[i])}\n") for i in order]
    room = len(hay_L) - sum(map(len, lines))
    last = room - (before or 0)
    if last <= 0:
        raise ValueError(f"{len(hay_L)} tokens have no place for {len(lines)} lines. Take a longer text.")
    start = min(FIRST, last // 4)
    places = sorted(rng.randint(start, last) for _ in lines) if depth is None else [max(start, round(depth * last))]
    parts, at = [], 0
    for place, line in zip(places * (len(lines) // len(places)), lines, strict=True):
        parts += [hay_L[at:place], torch.tensor(line)]
        at = place
    return torch.cat([*parts, hay_L[at:room]])
