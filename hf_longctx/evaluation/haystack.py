"""What needles are hidden in: five sentences over and over, or any text."""

from __future__ import annotations

import random
import re
from collections.abc import Sequence
from dataclasses import dataclass

NOISE = "The grass is green. The sky is blue. The sun is yellow. Here we go. There and back again."
_END = re.compile(r"(?<=[.!?])\s+")
_LONGEST = 30  # words of a sentence; a table or a poem without a full stop is cut


@dataclass(frozen=True)
class Haystack:
    """Sentences of a text in their order; the text continues from its start when it ends."""

    sentences: tuple[str, ...]
    name: str = "text"

    @classmethod
    def of(cls, text: str, name: str = "text") -> Haystack:
        """The sentences of a text, its white space made single spaces as RULER does.

        Raises:
            ValueError: The text is empty.
        """
        found: list[str] = []
        for sentence in _END.split(" ".join(text.split())):
            words = sentence.split(" ")
            found += [" ".join(words[i : i + _LONGEST]) for i in range(0, len(words), _LONGEST)]
        if not any(found):
            raise ValueError("the haystack is empty. Give a text with something in it.")
        return cls(tuple(found), name)

    def take(self, rng: random.Random, words: int) -> list[str]:
        """The next `words` words from a random sentence on, in sentences; the last one may be cut."""
        at = rng.randrange(len(self.sentences))
        found = []
        while words > 0:
            sentence = self.sentences[at % len(self.sentences)].split(" ")
            found.append(" ".join(sentence[:words]))
            words -= len(sentence)
            at += 1
        return found


def insert(sentences: Sequence[str], needles: Sequence[str], places: Sequence[int]) -> list[str]:
    """`sentences` with each needle before the sentence at its place (ascending; the number of sentences: at the end).

    A place may hold several needles, which keep their order.
    """
    found: list[str] = []
    at = 0
    for place, needle in zip(places, needles, strict=True):
        found += [*sentences[at:place], needle]
        at = place
    return [*found, *sentences[at:]]
