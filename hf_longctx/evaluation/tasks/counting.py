"""RULER's aggregation tasks: the most common words of a list, and of a coded text (Hsieh et al. 2024, section 3.3)."""

from __future__ import annotations

import math
import random
from dataclasses import dataclass, replace
from typing import ClassVar

from ...upstream.installing import Package
from ..generated import Generated
from ..sample import Sample
from ..words import WONDERWORDS, a_word, letters, word_list

COMMON = (
    "Below is a numbered list of words. In these words, some appear more often than others. Memorize the ones that "
    "appear most often.\n",
    "\nQuestion: What are the 10 most common words in the above list?",
    " Answer: The top 10 words that appear most often in the list are:",
)
CODED = (
    "Read the following coded text and track the frequency of each coded word. Find the three most frequently appeared "
    "coded words. ",
    "\nQuestion: Do not provide any explanation. Please ignore the dots '....'. What are the three most frequently "
    "appeared words in the above coded text?",
    " Answer: According to the coded text above, the three most frequently appeared words are:",
)
_ZETA_2 = math.pi**2 / 6


@dataclass(frozen=True, kw_only=True)
class CommonWords(Generated):
    """`common` words `often` times each among others that appear `seldom` times; a worked example stands before it.

    A unit is one of the other words. As in the official code, lengths below 4,096 have smaller counts; here those
    below 1,024 have no example either. Where the word lists are used up, words of an adjective and a noun follow.
    """

    common: int = 10
    often: int = 30
    seldom: int = 3
    example: tuple[int, int, int] | None = (30, 10, 3)  # other words, how often, how seldom
    max_new_tokens: ClassVar[int] = 120
    filler: ClassVar[str] = "dots"

    @property
    def packages(self) -> tuple[Package, ...]:
        """That of the word lists."""
        return (WONDERWORDS,)

    def at(self, length: int) -> CommonWords:
        """Smaller counts below 4,096 tokens, and no example below 1,024."""
        if length >= 4096:
            return self
        return replace(self, often=6, seldom=1, example=(10, 3, 1) if length >= 1024 else None)

    def build(self, rng: random.Random, units: int, fill: str, depth: float | None) -> Sample:
        """A numbered list of words in random order."""
        if depth is not None:
            raise ValueError(f"depth={depth}: the words of {self.name} are everywhere. Leave the depth out.")
        before, question, prefix = COMMON
        example = ""
        if self.example is not None:
            text, answers = self._list(rng, *self.example)
            numbered = " ".join(f"{i}. {word}" for i, word in enumerate(answers, 1))
            example = f"{before}{text}{question}{prefix} {numbered}\n"
        text, answers = self._list(rng, units, self.often, self.seldom)
        return self.sample(fill, " ", text, (f"{example}{before}", question, prefix), answers=tuple(answers))

    def _list(self, rng: random.Random, others: int, often: int, seldom: int) -> tuple[str, list[str]]:
        known = sorted({word for kind in ("noun", "adjective", "verb") for word in word_list(kind)})
        n = self.common + others
        words = rng.sample(known, min(n, len(known)))
        more = dict.fromkeys(words)
        while len(more) < n:
            more[a_word(rng)] = None
        words = list(more)
        many = words[: self.common] * often + words[self.common :] * seldom
        rng.shuffle(many)
        return " ".join(f"{i}. {word}" for i, word in enumerate(many, 1)), words[: self.common]


@dataclass(frozen=True, kw_only=True)
class FrequentWords(Generated):
    """Coded words with frequencies of rank to the power -2: the first rank is noise, the next three are asked for.

    A unit is ten words. The vocabulary grows with the document (RULER: a word for every 50 tokens).
    """

    max_new_tokens: ClassVar[int] = 50
    filler: ClassVar[str] = "dots"
    least: ClassVar[int] = 7  # the third coded word appears more often than the fourth from 65 words on

    def build(self, rng: random.Random, units: int, fill: str, depth: float | None) -> Sample:
        """A text of coded words in random order."""
        if depth is not None:
            raise ValueError(f"depth={depth}: the words of {self.name} are everywhere. Leave the depth out.")
        n = 10 * units
        # ranks beyond the square root of n / zeta(2) would appear less than once
        ranks = int(math.sqrt(n / _ZETA_2))
        coded: dict[str, None] = {}
        while len(coded) < max(ranks, 4):
            coded[letters(rng, 6)] = None
        vocabulary = ["....", *list(coded)[1:]]
        counts = [int(n * rank**-2 / _ZETA_2) for rank in range(1, len(vocabulary) + 1)]
        words = [word for word, count in zip(vocabulary, counts, strict=True) for _ in range(count)]
        rng.shuffle(words)
        return self.sample(fill, " ", " ".join(words), CODED, answers=tuple(vocabulary[1:4]))


TASKS = {"cwe": lambda name, text: CommonWords(name=name), "fwe": lambda name, text: FrequentWords(name=name)}
