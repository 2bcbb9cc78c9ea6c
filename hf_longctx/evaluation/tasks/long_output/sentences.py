"""Open sentences, which may say anything: what is asked is a word in each, and that no two are alike."""

from __future__ import annotations

import random
import re
from collections.abc import Sequence

from .vocabulary import WORDS

_SENTENCE = re.compile(r"[^.!?]{8,300}[.!?]")
FEWEST = 5  # words of a sentence


def sentence(word: str, others: Sequence[str]) -> str:
    """A sentence with a word, and three others."""
    return "The {} is {} and the {} is {}.".format(word, *others)


def distinct(rng: random.Random, words: Sequence[str]) -> list[str]:
    """A sentence with each word, no two alike.

    The others of a sentence are the words that follow. A model learns to copy these; of random ones it would learn
    that all are as likely, and, always taking the likeliest, write the same sentence again for a word that comes again.
    """
    found: dict[str, None] = {}
    for k, word in enumerate(words):
        others = [words[(k + i) % len(words)] for i in (1, 2, 3)]
        while (text := sentence(word, others)) in found:
            others = rng.choices(WORDS, k=3)
        found[text] = None
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
