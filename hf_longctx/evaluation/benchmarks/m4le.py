"""M4LE (Kwan et al. 2023, https://arxiv.org/abs/2310.19240): 36 data sets in buckets of length.

Prompt, ends of answers and scores are the official ones by the file's stem. Answers may take 512 tokens where they are
texts and 64 elsewhere (the official code lets them grow to the bucket's length), and a prompt that is too long loses
its middle (the official code cuts none).
"""

from __future__ import annotations

import math
import re
from collections import Counter
from collections.abc import Iterator, Sequence
from pathlib import Path

from ..records import records
from ..sample import Sample
from ..scoring import Metric, best, cut_zh, every, normalise, rouge, token_f1

KEYS = ("instruction", "input", "answers")
_LINE, _SENTENCE, _ZH_SENTENCE = ("\n",), ("\n", "."), ("\n", "。")
# score, and where an answer ends
TASKS: dict[str, tuple[str, tuple[str, ...]]] = {
    **dict.fromkeys(
        ("arxiv", "pubmed", "booksum", "cnnnews", "wikihow", "bigpatent_global_sum"), ("rouge_recall", _LINE)
    ),
    **dict.fromkeys(("cnewsum", "clts+"), ("rouge_recall_zh", ("\n", "新闻"))),
    **dict.fromkeys(("cepsum", "lcsts", "ncls", "news2016"), ("rouge_recall_zh", _LINE)),
    **dict.fromkeys(("triviaqa", "newsqa", "duorc", "nq-open", "hotpotqa"), ("contains", _SENTENCE)),
    **dict.fromkeys(("c3", "dureader", "drcd_semantic-single_qa"), ("contains", _ZH_SENTENCE)),
    **{f"{name}-zh2en": ("bleu", ()) for name in ("open-subtitles", "news-commentary", "tedtalks")},
    **{f"{name}-en2zh": ("bleu_zh", ()) for name in ("open-subtitles", "news-commentary", "tedtalks")},
    "wow": ("contains", (",", "\n")),
    "drcd_explicit-single_ret": ("contains", ("，", "\n")),
    "bigpatent_global_cls": ("contains", (":",)),
    "wikitext-103": ("same", (".",)),
    "wiki2019zh": ("same", ("。",)),
    "mnds-news_explicit-single_cls+ret": ("same", ()),
    "thucnews_explicit-single_cls+ret": ("same", ()),
    "mnds-news_semantic-multiple_cls+cnt": ("same", (".",)),
    "thucnews_semantic-multiple_cls+cnt": ("same", ("。",)),
    "marc": ("set_f1", ()),
    "mnds-news_explicit-multiple_cls+ret": ("set_f1", ()),
    "online-shopping": ("set_f1_zh", ()),
    "thucnews_explicit-multiple_cls+ret": ("set_f1_zh", ()),
}


def read(path: str | Path) -> Iterator[Sample]:
    """Samples of a data set's file; ValueError names the line and key of what is wrong."""
    task = Path(path).stem
    if task not in TASKS:
        raise ValueError(f"{path}: no data set of M4LE is called {task!r}. There are: {', '.join(sorted(TASKS))}.")
    metric, stop = TASKS[task]
    tokens = 512 if metric.startswith(("rouge", "bleu")) else 64
    common = {"task": task, "max_new_tokens": tokens, "metric": metric, "stop": stop}
    for record in records(path, KEYS):
        answers = record.texts("answers")
        if task.endswith("multiple_cls+cnt"):
            answers = tuple(answer.split(stop[0])[0] for answer in answers)
        bucket = record.get("length_bucket")
        prompt = {"instruction": record.text("instruction") + "\n", "context": record.text("input")}
        meta = {"groups": [] if bucket is None else [str(bucket)], "quoted": task == "news2016"}
        yield record.sample(id=record.name("id"), answers=answers, meta=meta, **prompt, **common)


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


METRICS = {
    "contains": Metric(every(contains), inside=True),
    "same": Metric(every(same)),
    "rouge_recall": Metric(best(rouge_recall)),
    "rouge_recall_zh": Metric(best(rouge_recall_zh)),
    "squad_f1": Metric(best(squad_f1)),
    "set_f1": Metric(lambda prediction, sample: set_f1(prediction, sample.answers, ",", ".")),
    "set_f1_zh": Metric(lambda prediction, sample: set_f1(prediction, sample.answers, "，", "。")),
    "bleu": Metric(None, lambda predictions, samples: bleu(predictions, [s.answers for s in samples])),
    "bleu_zh": Metric(None, lambda predictions, samples: bleu(predictions, [s.answers for s in samples], "zh")),
}
