"""Facts hidden in a text and asked for at its end, in words that no evaluation uses."""

from __future__ import annotations

import random
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from hf_longctx.text.joins import ids_after

from .wordings import HEADS, KEYS, OF_PERSONS, PLACES, TAILS, VARIED, a_value, capital

if TYPE_CHECKING:
    from torch import Tensor
    from transformers import PreTrainedTokenizerBase

FIRST = 64  # tokens that are the beginning of a window


@dataclass(frozen=True, eq=False)
class Row:
    """A window of tokens, one more than the model reads.

    Args:
        ids: The tokens.
        weights: What each weighs as a target.
        asked: Where each fact begins, and where the answer does that repeats it.
        positions: Of the tokens that the model reads, where they skip.
    """

    ids: list[int]
    weights: list[float]
    asked: Sequence[tuple[int, int]] = ()
    positions: Tensor | None = None


@dataclass(frozen=True)
class Fact:
    """A fact in tokens: as it is told, and as it is asked for and answered."""

    told: list[int]
    question: list[int]
    answer: list[int]


def names(rng: random.Random, count: int) -> list[str]:
    """Different first and last names."""
    every = [head + tail for head in HEADS for tail in TAILS]
    return [" ".join(pair) for pair in zip(rng.sample(every, count), rng.sample(every, count), strict=True)]


def value(rng: random.Random) -> str:
    """Digits mostly, or two words."""
    if rng.random() < 0.25:
        return " ".join(rng.sample(PLACES, 2))
    return str(rng.randrange(10 ** (digits := rng.randint(3, 7)), 10 ** (digits + 1)))


def told(tokenizer: PreTrainedTokenizerBase, fact: str, question: str, start: str, hidden: str) -> Fact:
    """The tokens of a fact; an answer that starts in quotes goes on without a space."""
    prompt = f"\n{question} {start}".rstrip()
    answer = f"{hidden}." if prompt.endswith('"') else f" {hidden}."
    return Fact(*(ids_after(tokenizer, "a", part) for part in (f"\n{fact}\n", prompt, answer)))


def few_kinds(rng: random.Random, tokenizer: PreTrainedTokenizerBase, count: int) -> list[Fact]:
    """Facts of four wordings about persons."""
    found = []
    for who in names(rng, count):
        words = [part.format(who=who, value="{value}") for part in rng.choice(OF_PERSONS)]
        hidden = value(rng)
        found.append(told(tokenizer, words[0].format(value=hidden), words[1], words[2], hidden))
    return found


def many_kinds(rng: random.Random, tokenizer: PreTrainedTokenizerBase, count: int) -> list[Fact]:
    """Facts of many wordings about keys of several kinds, no key twice, and with values of several kinds."""
    found: dict[str, Fact] = {}
    while len(found) < count:
        wording = rng.choice(VARIED)
        (kind,) = (kind for kind in KEYS if f"{{{kind}}}" in wording[1].lower())
        key, hidden = KEYS[kind](rng), a_value(rng)
        fields = {kind: key, capital(kind): capital(key), "value": hidden}
        if key not in found:
            found[key] = told(tokenizer, *(part.format(**fields) for part in wording), hidden)
    return list(found.values())


def hide(
    rng: random.Random, tokenizer: PreTrainedTokenizerBase, text: list[int], length: int, settings: dict[str, Any]
) -> Row:
    """`length` tokens of the text with facts at random places, asked for at the end in random order.

    Args:
        rng: Of everything that is random.
        tokenizer: Of the facts.
        text: Tokens, at least as many as remain beside facts and questions.
        length: Of the window, and one.
        settings: The config's `retrieval`.

    Raises:
        ValueError: The window has no room for the facts that were drawn.
    """
    near, apart, first = (settings.get(field, 0.0) for field in ("near", "apart", "first"))
    count = rng.randint(1, settings["facts"])
    facts = (many_kinds if settings.get("varied") else few_kinds)(rng, tokenizer, count)
    order = list(range(count))
    rng.shuffle(order)
    taken = sum(len(one.told) + len(one.question) + len(one.answer) for one in facts)
    room = length - taken
    if room < count or len(text) < room:
        raise ValueError(
            f"a window of {length} tokens holds no {count} facts with their questions, which take {taken}. "
            f"Give longer windows (retrieval: lengths) or fewer facts."
        )
    begins = sorted(places(rng, room, count, near, first), reverse=True)
    ends = [later(rng, begins[n], room, near) if apart and rng.random() < apart else room for n in range(count)]
    # in the order of the text: a fact before its question, questions at the end in theirs
    parts = [(begins[n], 0, n) for n in range(count)] + [(ends[n], 1 + at, n) for at, n in enumerate(order)]
    ids: list[int] = []
    weights: list[float] = []
    found: dict[int, list[int]] = {n: [] for n in range(count)}
    read = 0
    for place, question, n in sorted(parts):
        ids += text[read:place]
        read = place
        found[n].append(len(ids) + (len(facts[n].question) if question else 0))
        ids += facts[n].question + facts[n].answer if question else facts[n].told
        weights += [1.0] * (len(ids) - len(weights))
        if question:
            answer = len(facts[n].answer)
            weights[-answer:] = [float(settings["weight"])] * answer
    ids += text[read:room]
    weights += [1.0] * (len(ids) - len(weights))
    return Row(ids, weights, [(fact, answer) for fact, answer in found.values()])


def later(rng: random.Random, place: int, room: int, near: float) -> int:
    """A place from this one to `room`, near it or anywhere."""
    space = room - place
    return place + (round(space ** rng.random()) if rng.random() < near else rng.randint(0, space))


def places(rng: random.Random, room: int, count: int, near: float, first: float = 0.0) -> list[int]:
    """So many different places from 0 to below `room`; a share of them, `first`, among the first `FIRST`."""
    found = set(rng.sample(range(room), count))
    if near:
        far = [place for place in found if rng.random() >= near]
        found = set(far)
        while len(found) < count:
            found.add(room - round(room ** rng.random()))
    if first:
        found = {place for place in found if rng.random() >= first}
        while len(found) < count:
            found.add(rng.randrange(min(room, max(FIRST, 2 * count))))
    return list(found)
