"""One line of the report."""

from __future__ import annotations

from typing import NamedTuple


class Diagnosis(NamedTuple):
    """What was found about one thing.

    Attributes:
        topic: What was looked at, a word or two.
        text: What was found.
        wrong: Whether it needs mending.
    """

    topic: str
    text: str
    wrong: bool = False
