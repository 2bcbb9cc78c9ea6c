"""L-Eval's scores (An et al. 2023, https://arxiv.org/abs/2307.11088, section 3.3), by the official rules.

The official code's ROUGE is another package's, so ours may differ from it in the third decimal. Its LLM judge is not
here.
"""

from __future__ import annotations

import math
import re
from collections.abc import Sequence

from .longbench import normalise, rouge

_TOLD = re.compile(r"The answer is (\S+)")
_JUDGED = re.compile(r"true|false")
FACT = "[fact:"  # where the second answer of sci_fi begins
# what is written around the printed value of codeU
_AROUND = ("will be", "of the code", "is", "would be", "the value of", "the result of", "printed")
_NUMBER = re.compile(r"-?\d[\d,]*(?:\.\d+)?")


def exact(prediction: str, answer: str) -> float:
    """1 if the normal forms are equal."""
    return float(normalise(prediction) == normalise(answer))


def last_number(prediction: str, answers: Sequence[str]) -> float:
    """1 if the number after "The answer is", or else the last of the first paragraph, is a reference's (gsm100)."""
    given = _value(prediction)
    return float(given is not None and any(given == _value(answer) for answer in answers))


def first_line(prediction: str, answer: str) -> float:
    """1 if both are the same number, or the first line of two signs or more contains the reference (other exams).

    White space and case do not count.
    """
    try:
        return float(float(prediction) == float(answer))
    except ValueError:
        pass
    line = next((line for line in prediction.split("\n") if len(line) > 1), prediction)
    return float("".join(answer.lower().split()) in "".join(line.lower().split()))


def code_output(prediction: str, answer: str) -> float:
    """1 if the printed value is among the last words, or those after "the final output" (codeU)."""
    text, most = _code(prediction), len(answer.split()) + 3
    for around in _AROUND:
        text = text.replace(around, "")
    _, mark, after = text.rpartition("the final output")
    words = re.split(r"\s+", after)[:most] if mark else re.split(r"\s+", text)[-most:]
    return first_line(" ".join(words), _code(answer))


def judgements(text: str) -> tuple[str | None, ...]:
    """ "true" or "false" of sci_fi's "True [fact: False]": what the text says, and what is so, if that is there."""
    parts = text.lower().split(FACT, 1)
    return tuple(found.group() if (found := _JUDGED.search(part)) else None for part in parts)


def loyal_and_true(prediction: str, answer: str) -> float:
    """Share of the reference's judgements that the prediction has: loyal to the text, and to the facts (sci_fi)."""
    right, given = judgements(answer), judgements(prediction)
    return sum(one == other for one, other in zip(right, given, strict=False)) / len(right)


def rouges(prediction: str, answer: str) -> tuple[float, ...]:
    """F of ROUGE-1, ROUGE-2 and ROUGE-L."""
    return tuple(rouge(prediction, answer, kind, "f") for kind in ("rouge-1", "rouge-2", "rouge-l"))


def rouge_overall(prediction: str, answer: str) -> float:
    """Geometric mean of the F of ROUGE-1, ROUGE-2 and ROUGE-L."""
    return float(math.prod(rouges(prediction, answer)) ** (1 / 3))


def rouge_overall_mean(predictions: Sequence[str], answers: Sequence[Sequence[str]]) -> float:
    """Of a task: the geometric mean of the three means, each of the best reference's, as the official code has it."""
    best = [
        [max(values) for values in zip(*(rouges(prediction, answer) for answer in right), strict=True)]
        for prediction, right in zip(predictions, answers, strict=True)
    ]
    means = [sum(values) / len(best) for values in zip(*best, strict=True)]
    return float(math.prod(means) ** (1 / 3))


def has_number(answer: str) -> bool:
    """Is there a number in a reference?"""
    return _value(answer) is not None


def _code(text: str) -> str:
    text = re.sub(r"\s+", " ", text)
    for gone in (",", "'", "\\", ".0"):
        text = text.replace(gone, "")
    return text.replace("] [", "][").replace("[ [", "[[").replace("] ]", "]]")


def _value(text: str) -> float | None:
    told = _TOLD.search(text)
    for part in (told.group(1) if told else "", text.strip().split("\n\n")[0], text):
        if found := _NUMBER.findall(part):
            return float(found[-1].replace(",", ""))
    return None
