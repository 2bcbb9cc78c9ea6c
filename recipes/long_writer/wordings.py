"""How a length is asked for: in digits and in words, as a range, as the least and as the most, in many wordings."""

from __future__ import annotations

import random
from dataclasses import dataclass

ABOUT, RANGE, LEAST, MOST = "about", "range", "at least", "at most"
SLACK = 0.1  # of the asked words, by which a text may miss them
# {n}: a number in digits or words; {d}: in digits; {low} and {high}: the bounds of a range. No wording says where the
# text is, which may stand before or after it
WORDINGS: dict[str, tuple[str, ...]] = {
    ABOUT: (
        "Continue this text with about {n} words.",
        "Go on with this text. Write about {n} words.",
        "Write the next {n} words of this text.",
        "This is how a text begins. Continue it for roughly {n} words, then stop.",
        "Write a {d}-word continuation of this passage.",
        "Carry on with this text. Length: {d} words.",
        "Please continue this text. Your answer should be approximately {n} words long.",
        "How does this text continue? Answer with around {n} words of it.",
        "Word count: {d}. Task: continue the passage in the same style.",
        "I need {n} words that continue this text. Stop when you have written them.",
        "Extend this passage by {n} words.",
        "Continue in the style of this text and aim for {n} words.",
    ),
    RANGE: (
        "Continue this text with {low} to {high} words.",
        "Write between {low} and {high} words that follow on from this passage.",
        "Go on with this text. Not fewer than {low} and not more than {high} words, please.",
        "Continue this passage (length: {low} to {high} words).",
        "Write the next part of this text. It should have from {low} up to {high} words.",
    ),
    LEAST: (
        "Continue this text with at least {n} words, and not many more.",
        "Write a continuation of this passage. It must have {n} words or a few more.",
        "Go on with this text for no fewer than {n} words, but end soon after.",
        "Continue the text. The minimum is {n} words; stay close to it.",
    ),
    MOST: (
        "Continue this text with at most {n} words, and use nearly all of them.",
        "Write a continuation of this passage of up to {n} words, close to that limit.",
        "Go on with this text. The limit is {n} words; come near it.",
    ),
}
COUNTED = (
    "Divide it into {parts} counted parts of about 125 words: [1/{parts}] at the head of the first one, "
    "[{parts}/{parts}] at the head of the last one.",
    "Write it in {parts} parts, and begin each with its number and their total: [1/{parts}] and so on.",
    "Use {parts} counted parts, marked [1/{parts}] to [{parts}/{parts}].",
    "Put a mark before every part of about 125 words: [1/{parts}], then on to [{parts}/{parts}] before the last.",
)
_NUMBERS = (
    "zero one two three four five six seven eight nine ten eleven twelve thirteen fourteen fifteen sixteen seventeen "
    "eighteen nineteen twenty thirty forty fifty sixty seventy eighty ninety"
)
_SMALL = _NUMBERS.split()


@dataclass(frozen=True)
class Wording:
    """One way to ask for a length, drawn once for all lengths of a beginning: the number alone then differs.

    Args:
        kind: "about", "range", "at least" or "at most".
        template: Of `WORDINGS`.
        counted: Of `COUNTED`; "" asks for plain text.
        digits: How numbers look: "1,200" as ",", "1200" as "", and "one thousand two hundred" as "words".
        first: The text comes before what is asked.
    """

    kind: str
    template: str
    counted: str
    digits: str
    first: bool

    def prompt(self, text: str, words: int, parts: int) -> str:
        """The user's turn that asks to continue `text`."""
        low, high = self.bounds(words)
        plain = self.digits if self.digits != "words" else ","
        numbers = {"n": self._number(words), "low": self._number(low), "high": self._number(high)}
        asked = self.template.format(**numbers, d=format(words, f"{plain}d"))
        if self.counted:
            asked = f"{asked} {self.counted.format(parts=parts)}"
        return f"{text}\n\n{asked}" if self.first else f"{asked}\n\n{text}"

    def bounds(self, words: int) -> tuple[int, int]:
        """The least and the most words that do what is asked; those of a range are as round as its middle."""
        size = step(words) * max(1, round(SLACK * words / step(words)))
        return words - size * (self.kind != LEAST), words + size * (self.kind != MOST)

    def _number(self, number: int) -> str:
        return spelled(number) if self.digits == "words" else format(number, f"{self.digits}d")


def drawn(rng: random.Random, *, counted: bool) -> Wording:
    """A random wording: half of them ask for about so many words, and all of one kind are as frequent."""
    kind = rng.choice((ABOUT, ABOUT, ABOUT, RANGE, LEAST, MOST))
    clause = rng.choice(COUNTED) if counted else ""
    return Wording(kind, rng.choice(WORDINGS[kind]), clause, rng.choice((",", "", "words")), rng.random() < 0.25)


def step(words: int) -> int:
    """What a round number of this size is a multiple of."""
    return 10 if words < 500 else 50 if words < 2000 else 100


def spelled(number: int) -> str:
    """A whole number from 0 to 99,999 in words.

    Raises:
        ValueError: It is none.
    """
    if not 0 <= number < 100_000:
        raise ValueError(f"number={number}: expected 0 to 99,999.")
    if number < 20:
        return _SMALL[number]
    if number < 100:
        return _SMALL[number // 10 + 18] + (f"-{_SMALL[number % 10]}" if number % 10 else "")
    size, name = (1000, "thousand") if number >= 1000 else (100, "hundred")
    rest = f" {spelled(number % size)}" if number % size else ""
    return f"{spelled(number // size)} {name}{rest}"
