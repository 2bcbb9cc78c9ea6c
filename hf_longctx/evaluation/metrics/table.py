"""The scores by name: each gives 0 to 1 for a prediction and a sample."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

from hf_longctx.evaluation.metrics import choice, leval, longbench, m4le, ruler, writing
from hf_longctx.evaluation.tasks.sample import Sample
from hf_longctx.near import did_you_mean

Metric = Callable[[str, Sample], float]
JUDGED = "judge"  # a metric in name only: what the model wrote is kept for a judge, and no score is made up


def _all(score: Callable[[str, tuple[str, ...]], float]) -> Metric:
    """A score that looks at all references at once."""
    return lambda prediction, sample: score(prediction, sample.answers)


def _best(score: Callable[[str, str], float]) -> Metric:
    """The best reference's score."""
    return lambda prediction, sample: max((score(prediction, answer) for answer in sample.answers), default=0.0)


def _classification(prediction: str, sample: Sample) -> float:
    classes = _meta(sample, "all_classes")
    return max(longbench.classification(prediction, answer, classes) for answer in sample.answers)


def _sgt(prediction: str, sample: Sample) -> float:
    """SGT's weighted average, CR x STIC-2, with the proxy of the latter."""
    kind, number = _meta(sample, "type"), _meta(sample, "number")
    checks = {int(i): text for i, text in _meta(sample, "checks").items()}
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
    "rouge_overall": _best(leval.rouge_overall),
    "contains": _all(m4le.contains),
    "same": _all(m4le.same),
    "rouge_recall": _best(m4le.rouge_recall),
    "rouge_recall_zh": _best(m4le.rouge_recall_zh),
    "squad_f1": _best(m4le.squad_f1),
    "set_f1": lambda prediction, sample: m4le.set_f1(prediction, sample.answers, ",", "."),
    "set_f1_zh": lambda prediction, sample: m4le.set_f1(prediction, sample.answers, "，", "。"),
    "length_score": lambda prediction, sample: writing.length_score(prediction, _meta(sample, "required")),
    "long_enough": lambda prediction, sample: writing.long_enough(prediction, _meta(sample, "required")),
    "sgt": _sgt,
}
# of all samples of a task together, not of each
CORPUS: dict[str, Callable[[Sequence[str], Sequence[Sample]], float]] = {
    "bleu": lambda predictions, samples: m4le.bleu(predictions, [s.answers for s in samples]),
    "bleu_zh": lambda predictions, samples: m4le.bleu(predictions, [s.answers for s in samples], "zh"),
}
NAMES = (*METRICS, *CORPUS, JUDGED)


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

    Args:
        predictions: What the model wrote for each sample.
        samples: Of one task, with one metric.

    Raises:
        ValueError: As in `score`, or there are no samples, or they have several metrics.
    """
    metrics = {sample.metric for sample in samples}
    if len(metrics) != 1:
        raise ValueError(f"{len(samples)} samples with the metrics {sorted(metrics)}: expected some, of one metric.")
    (metric,) = metrics
    if metric == JUDGED:
        return None, [None] * len(samples)
    texts = [trimmed(prediction, sample) for prediction, sample in zip(predictions, samples, strict=True)]
    if metric in CORPUS:
        return CORPUS[metric](texts, samples), [CORPUS[metric]([t], [s]) for t, s in zip(texts, samples, strict=True)]
    found = [score(prediction, sample) for prediction, sample in zip(predictions, samples, strict=True)]
    return sum(found) / len(found), list(found)


def check(samples: Sequence[Sample]) -> None:
    """ValueError or ImportError now for a metric that could not be computed after an hour of generating."""
    for sample in {sample.metric: sample for sample in samples}.values():
        if sample.metric not in NAMES:
            near = did_you_mean(sample.metric, NAMES)
            raise ValueError(f"metric {sample.metric!r}: no such metric. {near}There are: {', '.join(NAMES)}.")
        scores(["a"], [sample])


def _meta(sample: Sample, key: str) -> Any:
    if key not in sample.meta:
        raise ValueError(f"sample {sample.id!r} of {sample.task}: {sample.metric} needs meta[{key!r}].")
    return sample.meta[key]
