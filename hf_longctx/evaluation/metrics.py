"""Scores that equal the benchmarks' official ones: each gives 0 to 1 for a prediction and a sample.

The metrics are those that the files of `benchmarks/` and `tasks/` declare in `METRICS`.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from ..near import did_you_mean
from . import benchmarks, tasks
from .folder import declared
from .scoring import Metric

if TYPE_CHECKING:
    from .sample import Sample

JUDGED = "judge"  # a metric in name only: what the model wrote is kept for a judge, and no score is made up


def metrics() -> dict[str, Metric]:
    """Every metric by name."""
    return {**declared(benchmarks, "METRICS"), **declared(tasks, "METRICS"), JUDGED: Metric(None, references=False)}


def trimmed(prediction: str, sample: Sample) -> str:
    """The prediction up to the sample's `stop`; some benchmarks strip it first, by the sample's `meta`."""
    if sample.meta.get("first_line"):  # LongBench
        prediction = prediction.lstrip("\n")
    if sample.meta.get("quoted") and '"' in prediction:  # M4LE's news2016
        prediction = prediction.split('"')[1]
    for stop in sample.stop:
        prediction = prediction.split(stop, 1)[0]
    return prediction


def score(prediction: str, sample: Sample) -> float:
    """The sample's own metric of what the model wrote, 0 to 1.

    Only generated text is scored, not the answer's beginning that was given; it ends before the sample's `stop`.

    Raises:
        ValueError: There is no such metric of one sample, or the sample lacks what it needs.
        ImportError: The metric needs a package that is not installed.
    """
    known = metrics()
    metric = known.get(sample.metric)
    if metric is None or metric.score is None:
        more = "" if metric is None else " It is one of all samples together: see scores()."
        raise ValueError(unknown(sample.metric, [name for name, one in known.items() if one.score], more))
    return float(metric.score(trimmed(prediction, sample), sample))


def scores(predictions: Sequence[str], samples: Sequence[Sample]) -> tuple[float | None, list[float | None]]:
    """The score of a task, 0 to 1, and that of each sample; None where a judge has to give it.

    Each sample is scored by its own metric. A task's score is the mean over its samples, those for a judge left out;
    with a metric of all samples together (BLEU), each of its samples counts with the score of all. Errors as `score`.
    """
    if not samples:
        raise ValueError("0 samples: expected at least one.")
    texts = [trimmed(prediction, sample) for prediction, sample in zip(predictions, samples, strict=True)]
    each: list[float | None] = [None] * len(samples)
    total, counted = 0.0, 0
    for name in dict.fromkeys(sample.metric for sample in samples if sample.metric != JUDGED):
        own = [i for i, sample in enumerate(samples) if sample.metric == name]
        metric = metrics().get(name)
        if metric is not None and metric.corpus is not None:
            for i in own:
                each[i] = metric.corpus([texts[i]], [samples[i]])
            total += len(own) * metric.corpus([texts[i] for i in own], [samples[i] for i in own])
        else:
            for i in own:
                each[i] = score(predictions[i], samples[i])
                total += each[i] or 0.0
        counted += len(own)
    return (total / counted if counted else None), each


def needs(sample: Sample) -> None:
    """ValueError unless a sample has a known metric and the references and `meta` that it needs, in their shapes."""
    known = metrics()
    if sample.metric not in known:
        raise ValueError(unknown(sample.metric, known))
    metric = known[sample.metric]
    blank = [not answer.strip() for answer in sample.answers]
    if metric.references and (all(blank) or (any(blank) and metric.inside)):
        shown = "are blank" if blank else "are none"
        raise ValueError(f"the references {shown}; {sample.metric} compares with at least one text.")
    if metric.needs is not None:
        metric.needs(sample)
    if metric.shape is not None:
        fits, words = metric.shape
        wrong = [answer for answer in sample.answers if not fits(answer)]
        if len(wrong) == len(sample.answers) or (wrong and metric.each):
            raise ValueError(f"the reference {wrong[0]!r:.60}: {sample.metric} compares with {words}.")


def asks_words(sample: Sample) -> int | None:
    """The words that a sample asks for, if its metric scores their number."""
    metric = metrics().get(sample.metric)
    return None if metric is None or metric.asked is None else metric.asked(sample)


def check(samples: Sequence[Sample]) -> None:
    """ValueError or ImportError now for a metric that could not be computed after an hour of generating."""
    for sample in samples:
        try:
            needs(sample)
        except ValueError as error:
            raise ValueError(f"sample {sample.id!r} of {sample.task}: {error}") from None
    for sample in {sample.metric: sample for sample in samples}.values():
        scores(["a"], [sample])


def unknown(name: str, known: Sequence[str] | dict[str, Metric], more: str = "") -> str:
    """What to say about a name that no metric has, with the nearest one."""
    return f"metric {name!r}: no such metric.{more} {did_you_mean(name, known)}There are: {', '.join(known)}."
