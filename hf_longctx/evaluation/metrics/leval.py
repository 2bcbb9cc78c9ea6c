"""L-Eval's closed-ended scores (An et al. 2023, https://arxiv.org/abs/2307.11088, section 3.3), from the paper.

The official code's ROUGE is another package's, so ours may differ from it in the third decimal. Its LLM judge is not
here.
"""

from __future__ import annotations

import re
from collections.abc import Sequence

from hf_longctx.evaluation.metrics.longbench import normalise, rouge

_NUMBER = re.compile(r"-?\d[\d,]*(?:\.\d+)?")


def exact(prediction: str, answer: str) -> float:
    """1 if the normal forms are equal."""
    return float(normalise(prediction) == normalise(answer))


def last_number(prediction: str, answers: Sequence[str]) -> float:
    """1 if the last number of the prediction equals the last one of a reference (gsm100)."""
    given = _value(prediction)
    return float(given is not None and any(given == _value(answer) for answer in answers))


def rouge_overall(prediction: str, answer: str) -> float:
    """Geometric mean of the F of ROUGE-1, ROUGE-2 and ROUGE-L."""
    found = [rouge(prediction, answer, kind, "f") for kind in ("rouge-1", "rouge-2", "rouge-l")]
    return float((found[0] * found[1] * found[2]) ** (1 / 3))


def _value(text: str) -> float | None:
    found = _NUMBER.findall(text)
    return float(found[-1].replace(",", "")) if found else None
