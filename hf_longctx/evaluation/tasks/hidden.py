"""One fact in a long text: a long number, and the needle that gave the task its name. A pass key is in `passkey`."""

from __future__ import annotations

import random
from dataclasses import dataclass
from typing import ClassVar

from ..generated import Generated
from ..haystack import NOISE, Haystack, insert
from ..sample import Sample


@dataclass(frozen=True, kw_only=True)
class Hidden(Generated):
    """A fact between the sentences of a haystack, and a question whose answer is in it. A subclass has the words."""

    haystack: Haystack | None = None  # None: the noise sentences

    def build(self, rng: random.Random, units: int, fill: str, depth: float | None) -> Sample:
        """The fact between sentences of the haystack."""
        before, fact, question, prefix, answer = self.words(rng)
        depth = rng.random() if depth is None else depth
        sentences = [NOISE] * units if self.haystack is None else self.haystack.take(rng, units)
        lines = insert(sentences, [fact], [round(depth * len(sentences))])
        joint = " " if self.haystack is not None else "\n"
        meta = {"haystack": "noise" if self.haystack is None else self.haystack.name}
        prompt = before, question, prefix
        return self.sample(fill, joint, joint.join(lines), prompt, answers=(answer,), depth=depth, meta=meta)

    def words(self, rng: random.Random) -> tuple[str, str, str, str, str]:
        """The words before the text, the fact, the question, the answer's beginning, and the answer."""
        raise NotImplementedError


@dataclass(frozen=True, kw_only=True)
class Number(Hidden):
    """A number of ten digits in runs (InfiniteBench's Retrieve.Number, Zhang et al. 2024, section 3.1)."""

    metric: ClassVar[str] = "first_integer"
    max_new_tokens: ClassVar[int] = 12

    def words(self, rng: random.Random) -> tuple[str, str, str, str, str]:
        """A new number in every sample."""
        digits = ""
        while len(digits) < 10:
            digits += str(rng.randrange(1 if not digits else 0, 10)) * rng.randrange(1, 4)
        number = digits[:10]
        return (
            "There is an important info hidden inside a lot of irrelevant text. Find it. I will quiz you about the "
            "important information there.\n\n",
            f"The sequence of digits is {number}. Remember it. {number} is the sequence of digits.",
            "\n\nWhat is the sequence of digits?",
            " The sequence of digits is",
            number,
        )


@dataclass(frozen=True, kw_only=True)
class Needle(Hidden):
    """A sentence about San Francisco in a real text (Kamradt 2023, LLMTest_NeedleInAHaystack), or a fact of your own.

    The official score is a judge's; this one is whether the answer contains the needle's words.
    """

    fact: str = "The best thing to do in San Francisco is eat a sandwich and sit in Dolores Park on a sunny day."
    asked: str = "What is the best thing to do in San Francisco?"
    answer: str = "eat a sandwich and sit in Dolores Park"
    max_new_tokens: ClassVar[int] = 50

    def words(self, rng: random.Random) -> tuple[str, str, str, str, str]:
        """The same fact in every sample."""
        question = f"\n\n{self.asked} Don't give information outside the document or repeat your findings."
        return "", self.fact, question, "", self.answer


TASKS = {"number": lambda name, text: Number(name=name), "niah": lambda name, text: Needle(name=name, haystack=text)}
