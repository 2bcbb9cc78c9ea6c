"""Facts to hide in a text and the questions about them: numbers, pass keys, several values of a key, chains.

A reader is taught with one half of the wordings and words, and asked with the other.
"""

# L tokens of a text
from __future__ import annotations

import random
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import pairwise

import torch
from torch import Tensor

from hf_longctx.evaluation.words import a_number, letters

KINDS = ("number", "pass key", "values", "chain")
VALUES, LINKS = 3, 3  # of a key, and variables of a chain
CAPITALS = "ABCDEFGHIJKLMNOPQRSTUVWXYZ"
FIRST = 300  # tokens of a text without facts: codes are centred by the first 256
Encode = Callable[[str], list[int]]

# (what is hidden, what is asked), of single values
TAUGHT = (
    ("The access code of {k} is {v}.", "What is the access code of {k}? The access code of {k} is"),
    ("{k} was stored under number {v}.", "Under which number was {k} stored? {k} was stored under number"),
    ("{k} lives at house {v}.", "At which house does {k} live? {k} lives at house"),
    ("Record of {k}: {v}.", "Give the record of {k}. The record of {k} is"),
    ("Remember that {k} equals {v}.", "What does {k} equal? In the text above, {k} equals"),
    ("The serial of {k} reads {v}.", "Question: what is the serial of {k}? Answer: the serial of {k} reads"),
    ("They paid {v} crowns for {k}.", "How many crowns were paid for {k}? The crowns paid for {k} were"),
    ("{k} got the ticket {v}.", "Which ticket did {k} get? According to the text, {k} got the ticket"),
    ("For {k} the secret figure is: {v}.", "Tell me the secret figure for {k}. The secret figure for {k} is:"),
    ("Someone wrote: {k} -> {v}.", "Complete: {k} ->"),
)
NUMBER = (
    "One of the special magic numbers for {k} is: {v}.",
    "What is the special magic number for {k} mentioned in the provided text? "
    "The special magic number for {k} mentioned in the provided text is:",
)
PASS_KEY = (
    "The pass key of {k} is {v}. Remember it. {v} is the pass key of {k}.",
    "What is the pass key of {k}? The pass key of {k} is",
)
TAUGHT_VALUES = (
    ("{k} was seen in year {v}.", "In which {n} years was {k} seen? {k} was seen in"),
    ("A page about {k}: {v}.", "List the {n} pages about {k}. The pages about {k} are"),
)
ASKED_VALUES = (
    "One of the special magic numbers for {k} is: {v}.",
    "What are all the special magic numbers for {k} mentioned in the provided text? "
    "The {n} special magic numbers for {k} mentioned in the provided text are:",
)
# (first link, further link, what is asked), of chains
TAUGHT_CHAINS = (
    ("Set {a} to {v}.", "Copy {a} into {b}.", "Which names hold {v}? {n} names hold {v}, they are:"),
    ("{a} := {v};", "{b} := {a};", "Which names in the passage hold {v}? {n} names hold {v}, they are:"),
    ("Let {a} be {v}.", "Let {b} be the same as {a}.", "Name all that are {v}. {n} names are {v}, they are:"),
)
ASKED_CHAIN = (
    "VAR {a} = {v}",
    "VAR {b} = VAR {a}",
    "Question: Find all variables that are assigned the value {v} in the text above. Answer: According to the chain(s) "
    "of variable assignment in the text above, {n} variables are assigned the value {v}, they are:",
)
TAUGHT_WORDS = (
    "amber brave calm dusty eager faint gentle hollow ivory jolly keen lunar mellow noble olive proud quiet rusty",
    "anchor basket candle dagger engine falcon garden hammer island jacket kettle lantern mirror needle orchard pillow",
)
ASKED_WORDS = (
    "ancient bitter clever damp early fuzzy grand heavy icy jagged kind lazy modern narrow orange plain royal steep",
    "apron bridge carpet dragon easel forest goblet harbour inkwell jungle kingdom ladder meadow notebook oyster piano",
)


@dataclass(frozen=True)
class Question:
    """Lines to hide in their order, what is asked about them, and the parts of the answer, each right or wrong."""

    kind: str
    lines: tuple[str, ...]
    asked: str
    answers: tuple[str, ...]


def names(rng: random.Random, n: int, taught: bool) -> list[str]:
    """`n` different names, an adjective and a noun each."""
    first, second = (words.split() for words in (TAUGHT_WORDS if taught else ASKED_WORDS))
    pairs = rng.sample(range(len(first) * len(second)), n)
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
