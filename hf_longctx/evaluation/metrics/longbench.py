"""LongBench's scores (Bai et al. 2023, https://arxiv.org/abs/2308.14508; official metrics.py).

Each compares a prediction with one reference and gives 0 to 1; the benchmark takes the best reference. Chinese scores
need `jieba`, ROUGE needs `rouge`, the package of the official code.
"""

from __future__ import annotations

import difflib
import re
import string
from collections import Counter
from collections.abc import Sequence
from typing import Any

from ...upstream.installing import install_extra

_ARTICLES = re.compile(r"\b(a|an|the)\b")
_ZH_PUNCTUATION = (
    "！？｡。＂＃＄％＆＇（）＊＋，－／：；＜＝＞＠［＼］＾＿｀｛｜｝～｟｠｢｣"
    "､、〃》「」『』【】〔〕〖〗〘〙〚〛〜〝〞〟〰〾〿–—‘’‛“”„‟…‧﹏."
)
_PUNCTUATION = str.maketrans("", "", string.punctuation)
_EVERY_PUNCTUATION = str.maketrans("", "", string.punctuation + _ZH_PUNCTUATION)


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


def qa_f1(prediction: str, answer: str) -> float:
    """Token F1 of the normal forms."""
    return token_f1(normalise(prediction).split(), normalise(answer).split())


def qa_f1_zh(prediction: str, answer: str) -> float:
    """Token F1 of jieba's words without punctuation."""
    words = [
        ["".join(w.lower().translate(_EVERY_PUNCTUATION).split()) for w in cut_zh(t)] for t in (prediction, answer)
    ]
    return token_f1(*([word for word in some if word] for some in words))


def rouge_l(prediction: str, answer: str) -> float:
    """ROUGE-L F of the package `rouge` 1.0; 0 where it cannot tell (an empty prediction)."""
    return rouge(prediction, answer, "rouge-l", "f")


def rouge_l_zh(prediction: str, answer: str) -> float:
    """The same of jieba's words."""
    return rouge_l(" ".join(cut_zh(prediction)), " ".join(cut_zh(answer)))


def classification(prediction: str, answer: str, all_classes: Sequence[str]) -> float:
    """1 over the number of class names in the prediction, if the answer is among them.

    The official code takes a name that is a part of the answer out of the list that it walks through, and so skips the
    name behind it. That is kept: scores would not be the official ones without it.
    """
    found = [name for name in all_classes if name in prediction]
    for name in found:
        if name in answer and name != answer:
            found.remove(name)
    return 1 / len(found) if answer in found else 0.0


def count(prediction: str, answer: str) -> float:
    """Share of the numbers in the prediction that are the answer."""
    return _share(prediction, answer)


def retrieval(prediction: str, answer: str) -> float:
    """The same for the number in "Paragraph N" or "段落N"."""
    number = paragraph(answer)
    if number is None:
        raise ValueError(f'the reference {answer!r:.60} is not "Paragraph N" or "段落N".')
    return _share(prediction, number)


def paragraph(answer: str) -> str | None:
    """N of "Paragraph N" or "段落N"; None for anything else."""
    found = re.search(r"(?:Paragraph |段落)(\d+)", answer)
    return None if found is None else found.group(1)


def code_similarity(prediction: str, answer: str) -> float:
    """Edit similarity of the first line without `, # or // to the reference.

    fuzzywuzzy's ratio without its optional C extension: difflib's, rounded to whole hundredths.
    """
    lines = prediction.lstrip("\n").split("\n")
    line = next((line for line in lines if not any(mark in line for mark in ("`", "#", "//"))), "")
    if line == answer:
        return 1.0
    if not line or not answer:
        return 0.0
    return round(100 * difflib.SequenceMatcher(None, line, answer).ratio()) / 100


def rouge(prediction: str, answer: str, kind: str, part: str) -> float:
    """A value of the package `rouge`: kind "rouge-1", "rouge-2" or "rouge-l", part "p", "r" or "f"."""
    try:
        from rouge import Rouge
    except ImportError:
        raise ImportError(
            f"this score is that of the package rouge. Install it: {install_extra('evaluation')}."
        ) from None
    try:
        scores: Any = Rouge().get_scores([prediction], [answer])
    # empty texts and very long ones; the official code counts them as 0, whatever the reason
    except (ValueError, RecursionError):
        return 0.0
    return float(scores[0][kind][part])


def cut_zh(text: str) -> list[str]:
    """Jieba's words of a Chinese text."""
    try:
        import jieba
    except ImportError:
        raise ImportError("Chinese scores are of jieba's words. Install it: pip install jieba.") from None
    return list(jieba.cut(text, cut_all=False))


def _share(prediction: str, number: str) -> float:
    numbers = re.findall(r"\d+", prediction)
    return sum(found == number for found in numbers) / len(numbers) if numbers else 0.0
