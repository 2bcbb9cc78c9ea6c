"""Open sentences, which may say anything: what is asked is a word in each, and that no two are alike."""

from __future__ import annotations

import random
import re

from .vocabulary import WORDS

_SENTENCE = re.compile(r"[^.!?]{8,300}[.!?]")
FEWEST = 5  # words of a sentence


def sentence(rng: random.Random, word: str) -> str:
    """A sentence with a word."""
    return f"The {word} is {rng.choice(WORDS)} and the {rng.choice(WORDS)} is {rng.choice(WORDS)}."


def distinct(rng: random.Random, words: list[str]) -> list[str]:
    """A sentence with each word, no two alike."""
    found: dict[str, None] = {}
    for word in words:
        size = len(found)
        while len(found) == size:
            found[sentence(rng, word)] = None
    return list(found)


def fits(text: str, word: str, seen: set[str]) -> bool:
    """Whether a text is one new sentence with a word, of at least five words; it is added to `seen` if it is."""
    words = re.findall(r"\w+", text.lower())
    alike = " ".join(words)
    if not _SENTENCE.fullmatch(text) or len(words) < FEWEST or word not in words or alike in seen:
        return False
    seen.add(alike)
    return True


def without(line: str, word: str, rng: random.Random) -> str:
    """A line without a word: another one stands in its place."""
    other = rng.choice([one for one in WORDS if not re.search(rf"\b{one}\b", line)])
    return re.sub(rf"\b{word}\b", other, line)
