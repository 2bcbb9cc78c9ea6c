"""When each job of a run would begin and end, if all take the seconds that are expected."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from .schedule import Job, Schedule, State


class Expected:
    """A `Machine` of a schedule on which nothing runs: its clock goes from the end of a job to that of the next."""

    def __init__(self) -> None:
        self.clock = 0.0
        self.ends: dict[str, float] = {}

    def now(self) -> float:
        """Seconds since the beginning."""
        return self.clock

    def sleep(self, seconds: float) -> None:
        """To the next end of a job."""
        self.clock = min(self.ends.values(), default=self.clock + seconds)

    def begin(self, job: Job, cards: Sequence[str]) -> None:
        """It will end as it is expected to."""
        self.ends[job.name] = self.clock + job.seconds

    def code(self, name: str) -> int | None:
        """0 when it has ended."""
        return 0 if self.clock >= self.ends[name] else None

    def stop(self, name: str) -> int:
        """What ends on time is not stopped."""
        return 1

    def collect(self, job: Job) -> tuple[str, ...]:
        """It has written nothing."""
        del self.ends[job.name]
        return ()


def plan(jobs: Sequence[Job], cards: Sequence[str], seconds: float) -> dict[str, State]:
    """How a run of them would end: when each was begun, on which cards; or that it was not."""
    return Schedule(jobs, Expected(), cards, seconds).run()


def used(begun: Iterable[State], cards: int) -> tuple[float, float]:
    """Of jobs that were begun the last end, and the part of the time until then for which the cards are in use."""
    begun = list(begun)
    last = max(((state.begun or 0.0) + state.seconds for state in begun), default=0.0)
    work = sum(len(state.cards) * state.seconds for state in begun)
    return last, work / (cards * last) if last else 0.0
