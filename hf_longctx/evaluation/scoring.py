"""What metrics share: how one is declared, SQuAD's normal form, token F1, ROUGE, and the words of a Chinese text."""

from __future__ import annotations

import re
import string
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from ..upstream.installing import Package, check_packages, install_extra

if TYPE_CHECKING:
    from .sample import Sample

_ARTICLES = re.compile(r"\b(a|an|the)\b")
_PUNCTUATION = str.maketrans("", "", string.punctuation)
Score = Callable[[str, "Sample"], float]
ROUGE = Package("this score is that of the package rouge", ("rouge",), install_extra("evaluation"))
JIEBA = Package("Chinese scores are of jieba's words", ("jieba",), "pip install jieba")


@dataclass(frozen=True)
class Metric:
    """How what a model wrote is scored, and what the metric needs of a sample.

    Args:
        score: 0 to 1 for a prediction and its sample; None where only all samples of a task together have a score.
        corpus: The score of all samples of a task, where it is not the mean of each.
        references: Whether it compares with references; False: it looks at the prediction alone.
        inside: Whether it searches the prediction for a reference: a blank one would make every answer right.
        shape: A test of a reference, without which no answer can be right, and its description.
        each: Whether all references must have the shape; one is enough otherwise.
        needs: Raises ValueError for a sample whose `meta` lacks what the metric reads.
        asked: The words that a sample asks for, where their number is scored; asked and written words are drawn.
    """

    score: Score | None
    corpus: Callable[[Sequence[str], Sequence[Sample]], float] | None = None
    references: bool = True
    inside: bool = False
    shape: tuple[Callable[[str], object], str] | None = None
    each: bool = False
    needs: Callable[[Sample], object] | None = None
    asked: Callable[[Sample], int] | None = None


def every(score: Callable[[str, tuple[str, ...]], float]) -> Score:
    """A score that looks at all references at once."""
    return lambda prediction, sample: score(prediction, sample.answers)


def best(score: Callable[[str, str], float]) -> Score:
    """The best reference's score."""
    return lambda prediction, sample: max((score(prediction, answer) for answer in sample.answers), default=0.0)


def meta(sample: Sample, key: str) -> Any:
    """A value of a sample's `meta`; ValueError if it is missing."""
    if key not in sample.meta:
        raise ValueError(f"sample {sample.id!r} of {sample.task}: {sample.metric} needs meta[{key!r}].")
    return sample.meta[key]


def whole_number(sample: Sample, key: str) -> int:
    """A whole number of a sample's `meta`, at least 1; ValueError if it is none."""
    value = meta(sample, key)
    if type(value) is not int or value < 1:
        raise ValueError(f"{key}={value!r:.60}: {sample.metric} needs a whole number, at least 1.")
    return value


def normalise(text: str) -> str:
    """SQuAD's normal form: lower case, no punctuation, no articles, single spaces."""
    return " ".join(_ARTICLES.sub(" ", text.lower().translate(_PUNCTUATION)).split())


def token_f1(prediction: Sequence[str], answer: Sequence[str]) -> float:
    """F1 of two bags of tokens; 0 where they share none."""
    same = sum((Counter(prediction) & Counter(answer)).values())
    if same == 0:
        return 0.0
    precision, recall = same / len(prediction), same / len(answer)
    return 2 * precision * recall / (precision + recall)


def rouge(prediction: str, answer: str, kind: str, part: str) -> float:
    """A value of the package `rouge`: kind "rouge-1", "rouge-2" or "rouge-l", part "p", "r" or "f"."""
    check_packages([ROUGE])
    from rouge import Rouge

    try:
        scores: Any = Rouge().get_scores([prediction], [answer])
    # empty texts and very long ones; the official code counts them as 0, whatever the reason
    except (ValueError, RecursionError):
        return 0.0
    return float(scores[0][kind][part])


def cut_zh(text: str) -> list[str]:
    """Words of a Chinese text, by jieba."""
    check_packages([JIEBA])
    import jieba

    return list(jieba.cut(text, cut_all=False))
