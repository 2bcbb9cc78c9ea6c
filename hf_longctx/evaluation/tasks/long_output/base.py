"""What a task of long answers is: it makes problems, and says line by line how far any text is right."""

from __future__ import annotations

import random
import re
from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, field
from typing import Any, ClassVar

Judge = Callable[[int, str], bool]  # called with the lines of a text in order: number from 0, and the line
_NAMES = ("task", "given", "question", "answer")


@dataclass(frozen=True)
class Problem:
    """A prompt and a right answer to it.

    Args:
        task: Name of the task, which verifies answers.
        given: The material that the answer is made of.
        question: What is asked about it.
        answer: A right answer, the lines of its frame included.
        facts: What else the verifier needs, as JSON types.
    """

    task: str
    given: str
    question: str
    answer: str
    facts: Mapping[str, Any] = field(default_factory=dict)

    @property
    def prompt(self) -> str:
        """The user's turn."""
        return f"{self.given}\n\n{self.question}"

    @property
    def lines(self) -> list[str]:
        """The lines of the answer inside its frame."""
        return self.answer.split("\n")[1:-1]

    def to_dict(self) -> dict[str, Any]:
        """The problem as a JSON object."""
        return asdict(self) | {"facts": dict(self.facts)}

    @classmethod
    def from_dict(cls, data: Mapping[str, Any]) -> Problem:
        """The problem of `to_dict`'s object; ValueError where a text is missing."""
        wrong = [name for name in _NAMES if not isinstance(data.get(name), str)]
        if wrong or not isinstance(data.get("facts"), Mapping):
            raise ValueError(
                f"a problem with the keys {sorted(data)}: expected the texts {', '.join(_NAMES)}, and an object "
                "'facts'. Give what Problem.to_dict() made."
            )
        return cls(**{name: data[name] for name in _NAMES}, facts=dict(data["facts"]))


@dataclass(frozen=True)
class Verdict:
    """What a verifier says of a text.

    Args:
        exact: All of it is right.
        share: Lines that are right before the first wrong one, over the lines of the right answer, or over those
            written if these are more: lines too many count against a text.
        frame: The answer stands in its frame, opened and closed.
    """

    exact: bool
    share: float
    frame: bool


class LongTask(ABC):
    """Base of the tasks. An answer is lines between the lines `<tag>` and `</tag>`."""

    name: ClassVar[str]
    tag: ClassVar[str]
    tokens_per_line: ClassVar[float]  # of the answer, in SmolLM2's tokens
    overhead: ClassVar[int] = 0  # tokens of the answer besides

    @abstractmethod
    def build(self, rng: random.Random, lines: int) -> Problem:
        """A problem whose answer has about `lines` lines, at least 3; `rng` decides all of it."""

    def judge(self, problem: Problem) -> Judge:
        """What decides whether a line is right, for one text. Here: it equals the line of the right answer."""
        expected = problem.lines
        return lambda i, line: line.rstrip() == expected[i]

    def slip(self, problem: Problem, at: int, rng: random.Random) -> str:
        """Line `at` of the right answer with one mistake, which makes it wrong. Here: of its last word."""
        lines = problem.lines
        return with_other_word(lines[at], [one for line in lines if (one := last_word(line)).isalpha()], rng)

    def problem(self, given: str, question: str, lines: list[str], **facts: Any) -> Problem:
        """A problem of this task whose right answer is `lines`; the question ends with what the frame is."""
        ask = f"{question} Put these lines between a line <{self.tag}> and a line </{self.tag}>."
        return Problem(self.name, given, ask, "\n".join([f"<{self.tag}>", *lines, f"</{self.tag}>"]), facts)


def last_word(line: str) -> str:
    """The last word or number of a line; "" if there is none."""
    words = re.findall(r"\w+", line)
    return words[-1] if words else ""


def with_other_word(line: str, others: list[str], rng: random.Random) -> str:
    """A line whose last word is another one, of `others` if there is one; a number is one larger."""
    word = last_word(line)
    at = line.rindex(word)
    if word.isdecimal():
        other = str(int(word) + 1)
    else:
        known = sorted(set(others) - {word})
        other = rng.choice(known) if known else f"{word}x"
    return line[:at] + other + line[at + len(word) :]
