"""When each job of a run would begin and end, if all take the seconds that are expected."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from itertools import pairwise

from .job import Job
from .schedule import Schedule, State


class Expected:
    """A `Machine` of a schedule on which nothing runs: its clock goes from the end of a job to that of the next.

    Args:
        names: Of the jobs.
    """

    def __init__(self, names: Iterable[str]) -> None:
        self.clock = 0.0
        self.ends: dict[str, float] = {}
        self.halves: dict[str, float] = {}
        self.left = set(names)  # jobs that are not over

    def now(self) -> float:
        """Seconds since the beginning."""
        return self.clock

    def sleep(self, seconds: float) -> None:
        """To the next end of a job, or the middle of one."""
        later = [at for at in (*self.ends.values(), *self.halves.values()) if at > self.clock]
        self.clock = min(later, default=self.clock + seconds)

    def begin(self, job: Job, cards: Sequence[str]) -> None:
        """It will end as it is expected to."""
        self.ends[job.name] = self.clock + job.seconds
        self.halves[job.name] = self.clock + job.seconds / 2

    def code(self, name: str) -> int | None:
        """0 when it has ended."""
        return 0 if self.clock >= self.ends[name] else None

    def stop(self, name: str) -> int:
        """What ends on time is not stopped."""
        return 1

    def collect(self, job: Job) -> tuple[str, ...]:
        """It has written nothing."""
        del self.ends[job.name]
        self.left.remove(job.name)
        return ()

    def there(self, name: str, file: str) -> bool:
        """Nothing says when: half way of the job that writes it. That of another run is there."""
        half = self.halves.get(name, math.inf)
        return name not in self.left or self.clock >= half


def plan(jobs: Sequence[Job], cards: Sequence[str], seconds: float) -> dict[str, State]:
    """How a run of them would end: when each was begun, on which cards; or that it was not."""
    return Schedule(jobs, Expected(job.name for job in jobs), cards, seconds).run()


def used(begun: Iterable[State], cards: int) -> tuple[float, float]:
    """Of jobs that were begun the last end, and the part of the time until then for which the cards are in use."""
    spans = [(state.begun or 0.0, (state.begun or 0.0) + state.seconds, state.cards) for state in begun]
    last = max((ends for _, ends, _ in spans), default=0.0)
    work = 0.0
    for since, until in pairwise(sorted({at for begins, ends, _ in spans for at in (begins, ends)})):
        busy = {card for begins, ends, own in spans if begins <= since < ends for card in own}
        work += len(busy) * (until - since)
    return last, work / (cards * last) if last else 0.0
