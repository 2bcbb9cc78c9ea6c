"""Problems as samples of the runner, and the verdict as its metric."""

from __future__ import annotations

from contextlib import suppress

from ...sample import Sample
from ...scoring import Metric, meta
from .base import Problem
from .verify import verify

ROOM = 2  # times the tokens of the right answer may be written


def eval_sample(problem: Problem, number: int, tokens: int) -> Sample:
    """A sample for `hf-longctx eval --task jsonl:FILE`, scored by the share right before the first wrong line.

    Args:
        problem: What is asked.
        number: Of the sample in its task, for its id.
        tokens: About how long the right answer is. Twice as much may be written, and 64 tokens.
    """
    return Sample(
        id=f"{problem.task}-{tokens}-{number}",
        task=f"long_{problem.task}",
        context=problem.given,
        question=f"\n\n{problem.question}",
        answers=(problem.answer,),
        max_new_tokens=ROOM * tokens + 64,
        metric="long_output_share",
        meta={"problem": problem.to_dict()},
    )


def _problem(sample: Sample) -> Problem:
    return Problem.from_dict(meta(sample, "problem"))


def _needs(sample: Sample) -> None:
    """ValueError for a problem whose own answer its verifier does not take, before a model is run."""
    problem = _problem(sample)
    with suppress(LookupError, TypeError, AttributeError):  # facts of another task, or of other types
        if verify(problem, problem.answer).exact:
            return
    raise ValueError(
        f"the problem of {problem.task!r} has an answer that its own verifier refuses, or lacks facts. "
        "Give what eval_sample() made."
    )


METRICS = {
    "long_output_share": Metric(lambda text, sample: verify(_problem(sample), text).share, needs=_needs),
    "long_output_exact": Metric(lambda text, sample: float(verify(_problem(sample), text).exact), needs=_needs),
}
