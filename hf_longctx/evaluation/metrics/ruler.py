"""RULER's two scores and the first-integer score of passkey and LongChat (Hsieh et al. 2024, official eval code)."""

from __future__ import annotations

import re
from collections.abc import Sequence


def string_match_all(prediction: str, answers: Sequence[str]) -> float:
    """Share of the answers that the prediction contains, whatever the case."""
    return sum(answer.lower() in prediction.lower() for answer in answers) / len(answers)


def string_match_part(prediction: str, answers: Sequence[str]) -> float:
    """1 if the prediction contains any of the answers, whatever the case."""
    return float(any(answer.lower() in prediction.lower() for answer in answers))


def first_integer(prediction: str, answers: Sequence[str]) -> float:
    """1 if the first run of digits in the prediction is one of the answers."""
    found = re.search(r"\d+", prediction)
    return float(found is not None and found.group() in answers)
