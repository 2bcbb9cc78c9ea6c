"""What is free of a machine's cards: whole ones, or parts of those that several jobs have."""

from __future__ import annotations

from collections.abc import Iterable

from .job import Job

NOTHING = 1e-6  # of a card, by rounding


class Free:
    """The parts of each card that no job has.

    Args:
        cards: As CUDA_VISIBLE_DEVICES names them.
    """

    def __init__(self, cards: Iterable[str]) -> None:
        self.parts = dict.fromkeys(cards, 1.0)

    def take(self, job: Job) -> tuple[str, ...] | None:
        """Cards for a job, which they are taken for; None: there are not enough.

        A part of a card is one of that of which most is free.
        """
        if job.share < 1:
            fits = [card for card, part in self.parts.items() if part > job.share - NOTHING]
            found = tuple(sorted(fits, key=lambda card: -self.parts[card])[:1])
        else:
            found = tuple(card for card, part in self.parts.items() if part > 1 - NOTHING)[: job.cards]
        if len(found) < job.cards:
            return None
        for card in found:
            self.parts[card] -= job.share
        return found

    def give_back(self, job: Job, cards: Iterable[str]) -> None:
        """Those of a job that is over."""
        for card in cards:
            self.parts[card] += job.share
