"""The plan of a long text: asked for, read from what a model wrote, checked and repaired.

AgentWrite (Bai et al. 2024, https://arxiv.org/abs/2408.07055, section 3), step I, with words of our own.
"""

from __future__ import annotations

import itertools
import re
from dataclasses import dataclass

from .replies import Reply, Unusable

LEAST, MOST = 200, 1000  # words of a paragraph, as in the paper
STEPS = 50  # paragraphs; the paper drops longer plans
LONGEST = STEPS * MOST  # words of a text
TOKENS = 4096
_READ = 100_000  # characters of a reply, and of a line, that are looked at
_LINE = 2_000
# "3. ...", "**Paragraph 3:** ...", "| 3 | ...": no "400-word", no "2.5"
_NUMBERED = re.compile(
    r"(?:\W*(?:paragraph|part|section|step)\b)?\W*?(\d{1,3})[*_]*(?:[.):](?!\d)|\s[–—|-])[\s*_]*(.+)", re.IGNORECASE
)
_NUMBER = r"(?<![\d,.])(\d[\d,]{0,8})"  # no longer: it would be no number of words
_COUNT = rf"{_NUMBER}(?:\s*(?:-|–|to)\s*{_NUMBER})?"
_WORDS = re.compile(
    rf"\bwords?(?:\s+count)?\W*[:=]\W*{_COUNT}(?:\s*words?\b)?|{_COUNT}\s*(?:words?\b|字)", re.IGNORECASE
)
_ASKED = re.compile(rf"{_NUMBER}(\.\d{{1,9}})?\s*(k?)[\s-]*(?:words?\b|字)", re.IGNORECASE)


@dataclass(frozen=True)
class Step:
    """One paragraph of a plan: what it tells, and in how many words."""

    point: str
    words: int


def asked_words(instruction: str) -> int | None:
    """The number before the first "words" in an instruction; None without one."""
    found = _ASKED.search(instruction)
    number = float(found[1].replace(",", "") + (found[2] or "")) * (1000 if found[3] else 1) if found else 0.0
    return round(number) or None


def plan_prompt(instruction: str, asked: int | None) -> str:
    """The request for a plan."""
    least = min(LEAST, asked or LEAST)
    total = f" All paragraphs together have {asked} words." if asked else ""
    return (
        f"This text has to be written:\n\n{instruction}\n\nDo not write it yet. Divide it into paragraphs that will be "
        f"written one after the other, each of {least} to {MOST} words, at most {STEPS} of them.{total} Give one line "
        "for each paragraph in this form, and nothing else:\n\n"
        "1. What the paragraph tells, and its main points (400 words)\n"
        "2. What the next one tells, and its main points (250 words)"
    )


def plan_text(steps: list[Step]) -> str:
    """The plan in lines."""
    return "\n".join(f"{i}. {step.point} ({step.words} words)" for i, step in enumerate(steps, 1))


def read_plan(reply: Reply, asked: int | None) -> list[Step]:
    """The steps of a plan; lines that are none are left out, and words are brought to `asked` in all.

    A line without a number of words gets the mean of the others, and numbers may leave gaps.

    Raises:
        Unusable: It is no plan, or not one of this text.
    """
    if not reply.ended:
        raise Unusable("the plan is not finished")
    lines = [line[:_LINE].strip() for line in reply.answer[:_READ].splitlines()]
    found = [match for line in lines if (match := _NUMBERED.match(line))]
    if not found:
        raise Unusable("no line begins with the number of a paragraph")
    if len(found) > STEPS:
        raise Unusable(f"it has {len(found)} paragraphs, and {STEPS} are the most")
    numbers = [int(match[1]) for match in found]
    if any(after <= before for before, after in itertools.pairwise(numbers)):
        raise Unusable(f"its paragraphs have the numbers {', '.join(map(str, numbers[:12]))}, which do not count up")
    read = [_step(match[2]) for match in found]
    if empty := [str(number) for number, (point, _) in zip(numbers, read, strict=True) if not point]:
        raise Unusable(f"it does not say what paragraph {', '.join(empty)} tells")
    given = [words for _, words in read if words]
    if not given:
        raise Unusable("no line says how many words its paragraph has, such as (400 words)")
    words = _scaled([words or round(sum(given) / len(given)) for _, words in read], asked)
    return [Step(point, n) for (point, _), n in zip(read, words, strict=True)]


def _step(line: str) -> tuple[str, int]:
    """What a line tells, and its number of words, 0 without one."""
    counts = list(_WORDS.finditer(line))
    if not counts:
        return _plain(line), 0
    last = counts[-1]  # earlier ones belong to what the paragraph tells
    ends = [int(number.replace(",", "")) for number in last.groups() if number]
    return _plain(line[: last.start()] + line[last.end() :]), round(sum(ends) / len(ends))


def _plain(point: str) -> str:
    return re.sub(r"^main point\W+", "", point.strip(" \t-–—|:*_()[]."), flags=re.IGNORECASE)


def _scaled(words: list[int], asked: int | None) -> list[int]:
    total = sum(words)
    if asked is not None:
        if not asked / 2 <= total <= asked * 2:
            raise Unusable(f"its paragraphs have {total} words together, and {asked} were asked for")
        words = [round(n * asked / total) for n in words]
        words[-1] += asked - sum(words)  # what rounding left
    least, most = min(LEAST, asked or LEAST) // 2, MOST * 3 // 2
    if off := [n for n in words if not least <= n <= most]:
        raise Unusable(f"a paragraph has {off[0]} words, and {LEAST} to {MOST} were asked for")
    return words
