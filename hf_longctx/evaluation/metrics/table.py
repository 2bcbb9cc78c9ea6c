"""The scores by name: each gives 0 to 1 for a prediction and a sample."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING

from ...near import did_you_mean
from . import choice, leval, longbench, m4le, ruler, writing
from .needs import JUDGED, meta, needs

if TYPE_CHECKING:
    from ..tasks.sample import Sample

Metric = Callable[[str, "Sample"], float]


def _all(score: Callable[[str, tuple[str, ...]], float]) -> Metric:
    """A score that looks at all references at once."""
    return lambda prediction, sample: score(prediction, sample.answers)


def _best(score: Callable[[str, str], float]) -> Metric:
    """The best reference's score."""
    return lambda prediction, sample: max((score(prediction, answer) for answer in sample.answers), default=0.0)


def _classification(prediction: str, sample: Sample) -> float:
    classes = meta(sample, "all_classes")
    return max(longbench.classification(prediction, answer, classes) for answer in sample.answers)


def _sgt(prediction: str, sample: Sample) -> float:
    """SGT's weighted average, CR x STIC-2, with the proxy of the latter."""
    kind, number = meta(sample, "type"), meta(sample, "number")
    checks = {int(i): text for i, text in meta(sample, "checks").items()}
    followed = writing.instructions_followed(prediction, kind, checks)[1]
    return writing.completion_rate(prediction, kind, number) * followed


METRICS: dict[str, Metric] = {
    "string_match_all": _all(ruler.string_match_all),
    "string_match_part": _all(ruler.string_match_part),
    "first_integer": _all(ruler.first_integer),
    "presence": lambda prediction, sample: float(any(a.strip() in prediction for a in sample.answers)),
    "qa_f1": _best(longbench.qa_f1),
    "qa_f1_zh": _best(longbench.qa_f1_zh),
    "rouge_l": _best(longbench.rouge_l),
    "rouge_l_zh": _best(longbench.rouge_l_zh),
    "classification": _classification,
    "count": _best(longbench.count),
    "retrieval": _best(longbench.retrieval),
    "code_similarity": _best(longbench.code_similarity),
    "choice": _all(choice.choice),
    "choice_compensated": _all(choice.choice_compensated),
    "letters_exact": _all(choice.letters_exact),
    "letters_partial": _all(choice.letters_partial),
    "exact": _best(leval.exact),
    "last_number": _all(leval.last_number),
    "first_line": _best(leval.first_line),
    "code_output": _best(leval.code_output),
    "loyal_and_true": _best(leval.loyal_and_true),
    "rouge_overall": _best(leval.rouge_overall),
    "contains": _all(m4le.contains),
    "same": _all(m4le.same),
    "rouge_recall": _best(m4le.rouge_recall),
    "rouge_recall_zh": _best(m4le.rouge_recall_zh),
    "squad_f1": _best(m4le.squad_f1),
    "set_f1": lambda prediction, sample: m4le.set_f1(prediction, sample.answers, ",", "."),
    "set_f1_zh": lambda prediction, sample: m4le.set_f1(prediction, sample.answers, "，", "。"),
    "length_score": lambda prediction, sample: writing.length_score(prediction, meta(sample, "required")),
    "long_enough": lambda prediction, sample: writing.long_enough(prediction, meta(sample, "required")),
    "sgt": _sgt,
}
# of all samples of a task together, not of each
CORPUS: dict[str, Callable[[Sequence[str], Sequence[Sample]], float]] = {
    "bleu": lambda predictions, samples: m4le.bleu(predictions, [s.answers for s in samples]),
    "bleu_zh": lambda predictions, samples: m4le.bleu(predictions, [s.answers for s in samples], "zh"),
    "rouge_overall": lambda predictions, samples: leval.rouge_overall_mean(predictions, [s.answers for s in samples]),
}
NAMES = tuple(dict.fromkeys((*METRICS, *CORPUS, JUDGED)))


def trimmed(prediction: str, sample: Sample) -> str:
    """What the model wrote, up to the sample's `stop`; some benchmarks strip it first, by the sample's `meta`."""
    if sample.meta.get("first_line"):  # LongBench
        prediction = prediction.lstrip("\n")
    if sample.meta.get("quoted") and '"' in prediction:  # M4LE's news2016
        prediction = prediction.split('"')[1]
    for stop in sample.stop:
        prediction = prediction.split(stop, 1)[0]
    return prediction


def score(prediction: str, sample: Sample) -> float:
    """The sample's own metric of what the model wrote, 0 to 1.

    Only what was generated is scored, not the answer's beginning that was given; it ends before the sample's `stop`.

    Raises:
        ValueError: There is no such metric of one sample, or the sample lacks what it needs.
        ImportError: The metric needs a package that isn't installed.
    """
    if sample.metric not in METRICS:
        near = did_you_mean(sample.metric, METRICS)
        more = " It is one of all samples together: see scores()." if sample.metric in CORPUS else ""
        raise ValueError(f"metric {sample.metric!r}: no such metric.{more} {near}There are: {', '.join(METRICS)}.")
    return float(METRICS[sample.metric](trimmed(prediction, sample), sample))


def scores(predictions: Sequence[str], samples: Sequence[Sample]) -> tuple[float | None, list[float | None]]:
    """The score of a task, 0 to 1, and that of each sample; None where a judge has to give it.

    Each sample is scored by its own metric. A task's score is the mean over its samples, those for a judge left out;
    of a metric that is of all samples together (BLEU), each of its samples counts with what they have together.

    Args:
        predictions: What the model wrote for each sample.
        samples: Of one task, at least one.

    Raises:
        ValueError: As in `score`, or there are no samples.
    """
    if not samples:
        raise ValueError("0 samples: expected at least one.")
    texts = [trimmed(prediction, sample) for prediction, sample in zip(predictions, samples, strict=True)]
    each: list[float | None] = [None] * len(samples)
    total, counted = 0.0, 0
    for metric in dict.fromkeys(sample.metric for sample in samples if sample.metric != JUDGED):
        own = [i for i, sample in enumerate(samples) if sample.metric == metric]
        for i in own:
            one = CORPUS[metric]([texts[i]], [samples[i]]) if metric in CORPUS else score(predictions[i], samples[i])
            each[i] = one
        if metric in CORPUS:
            total += len(own) * CORPUS[metric]([texts[i] for i in own], [samples[i] for i in own])
        else:
            total += sum(float(each[i] or 0) for i in own)
        counted += len(own)
    return (total / counted if counted else None), each


def check(samples: Sequence[Sample]) -> None:
    """ValueError or ImportError now for a metric that could not be computed after an hour of generating."""
    for sample in samples:
        if sample.metric in NAMES:
            try:
                needs(sample)
            except ValueError as error:
                raise ValueError(f"sample {sample.id!r} of {sample.task}: {error}") from None
    for sample in {sample.metric: sample for sample in samples}.values():
        if sample.metric not in NAMES:
            near = did_you_mean(sample.metric, NAMES)
            raise ValueError(f"metric {sample.metric!r}: no such metric. {near}There are: {', '.join(NAMES)}.")
        scores(["a"], [sample])
