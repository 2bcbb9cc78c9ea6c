"""What a metric needs of a sample: references of a shape that some answer can meet, and what it reads in `meta`."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any

from . import choice, leval, longbench

if TYPE_CHECKING:
    from ..tasks.sample import Sample

JUDGED = "judge"  # a metric in name only: what the model wrote is kept for a judge, and no score is made up
# what needs no reference: these look at what was written alone
ALONE = ("length_score", "long_enough", "sgt", JUDGED)
# of which a blank reference would make every answer right
INSIDE = ("string_match_all", "string_match_part", "contains", "presence", "first_line", "code_output")
# what a reference must be for any answer to be right
SHAPES: dict[str, tuple[Callable[[str], object], str]] = {
    "retrieval": (longbench.paragraph, '"Paragraph N" or "段落N"'),
    "first_integer": (str.isdecimal, "a number in digits"),
    "last_number": (leval.has_number, "a number"),
    "loyal_and_true": (lambda answer: None not in leval.judgements(answer), '"True [fact: False]", or one of the two'),
    **dict.fromkeys(
        ("choice", "choice_compensated", "letters_exact", "letters_partial"),
        (choice.right_letters, 'letters A to D, such as "B", "(B) text" or "ACD"'),
    ),
}


def needs(sample: Sample) -> None:
    """ValueError unless a sample has the references and the `meta` that its metric needs, in their shapes."""
    metric = sample.metric
    blank = [not answer.strip() for answer in sample.answers]
    if metric not in ALONE and (all(blank) or (any(blank) and metric in INSIDE)):
        shown = "are blank" if blank else "are none"
        raise ValueError(f"the references {shown}; {metric} compares with at least one text.")
    if metric == "classification":
        classes = meta(sample, "all_classes")
        if not isinstance(classes, list | tuple) or not all(isinstance(one, str) for one in classes) or not classes:
            raise ValueError(f"all_classes={classes!r:.60}: {metric} needs a list of the classes' names.")
    elif metric in ("length_score", "long_enough"):
        _at_least_one(sample, "required")
    elif metric == "sgt":
        _at_least_one(sample, "number")
        for key, kind in (("type", str), ("checks", Mapping)):
            if not isinstance(meta(sample, key), kind):
                raise ValueError(f"{key}={meta(sample, key)!r:.60}: {metric} needs what the benchmark's files have.")
    if metric in SHAPES:
        fits, words = SHAPES[metric]
        wrong = [answer for answer in sample.answers if not fits(answer)]
        if len(wrong) == len(sample.answers) or (wrong and metric == "retrieval"):  # which looks at each
            raise ValueError(f"the reference {wrong[0]!r:.60}: {metric} compares with {words}.")


def _at_least_one(sample: Sample, key: str) -> None:
    value = meta(sample, key)
    if type(value) is not int or value < 1:
        raise ValueError(f"{key}={value!r:.60}: {sample.metric} needs a whole number, at least 1.")


def meta(sample: Sample, key: str) -> Any:
    """A value of a sample's `meta`; ValueError if it is not there."""
    if key not in sample.meta:
        raise ValueError(f"sample {sample.id!r} of {sample.task}: {sample.metric} needs meta[{key!r}].")
    return sample.meta[key]
