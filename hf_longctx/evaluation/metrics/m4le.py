"""M4LE's scores (Kwan et al. 2023, https://arxiv.org/abs/2310.19240; official evaluation.py)."""

from __future__ import annotations

import math
import re
from collections import Counter
from collections.abc import Sequence

from .longbench import cut_zh, normalise, rouge, token_f1


def contains(prediction: str, answers: Sequence[str]) -> float:
    """1 if the prediction contains any of the answers, whatever the case ("acc")."""
    return float(any(str(answer).lower() in prediction.lower() for answer in answers))


def same(prediction: str, answers: Sequence[str]) -> float:
    """1 if the prediction is one of the answers, whatever the case and the space around it ("exact_match")."""
    return float(prediction.lower().strip() in {str(answer).lower().strip() for answer in answers})


def rouge_recall(prediction: str, answer: str) -> float:
    """Recall, not F, of ROUGE-L ("rouge")."""
    return rouge(prediction, answer, "rouge-l", "r") if answer else 0.0


def rouge_recall_zh(prediction: str, answer: str) -> float:
    """The same of jieba's words."""
    return rouge_recall(" ".join(cut_zh(prediction)), " ".join(cut_zh(answer)))


def squad_f1(prediction: str, answer: str) -> float:
    """SQuAD 2's token F1: where one has no token, 1 if the other has none either ("qa_f1")."""
    given, right = normalise(prediction).split(), normalise(answer).split()
    return token_f1(given, right) if given and right else float(given == right)


def set_f1(prediction: str, answers: Sequence[str], separator: str, end: str) -> float:
    """F1 of two sets of labels: those before the first `end`, between separators ("cls_f1")."""
    given = {part.strip() for part in prediction.split(end)[0].split(separator)}
    right = {part.strip() for part in answers[0].split(end)[0].split(separator)}
    same_ones = len(given & right)
    return 2 * same_ones / (len(given) + len(right)) if same_ones else 0.0


def bleu(predictions: Sequence[str], answers: Sequence[Sequence[str]], language: str = "en") -> float:
    """Corpus BLEU with n-grams up to 4 and no smoothing (Papineni et al. 2002), 0 to 1.

    English is split into words and signs, Chinese into jieba's words.
    """
    matched, total, given, wanted = [0] * 4, [0] * 4, 0, 0
    for prediction, references in zip(predictions, answers, strict=True):
        words, right = _words(prediction, language), [_words(reference, language) for reference in references]
        given += len(words)
        # the shortest of equally near ones does not matter: the official code takes the shortest of all
        wanted += min(map(len, right))
        for n in range(1, 5):
            most: Counter[tuple[str, ...]] = Counter()
            for reference in right:
                most |= _grams(reference, n)
            found = _grams(words, n)
            matched[n - 1] += sum((found & most).values())
            total[n - 1] += max(len(words) - n + 1, 0)
    if not given or 0 in matched:
        return 0.0
    mean = math.exp(sum(math.log(m / t) for m, t in zip(matched, total, strict=True)) / 4)
    return mean * (1.0 if given > wanted else math.exp(1 - wanted / given))


def _words(text: str, language: str) -> list[str]:
    return cut_zh(text) if language == "zh" else re.findall(r"\w+|[^\w\s]", text)


def _grams(words: Sequence[str], n: int) -> Counter[tuple[str, ...]]:
    return Counter(tuple(words[i : i + n]) for i in range(len(words) - n + 1))
