"""Which jobs run when: one on each card, one on several, or several on one, until the time is over."""

from __future__ import annotations

import json
import os
import signal
import threading
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Protocol

from hf_longctx.storage.files import write_whole

from . import asking
from .free import Free
from .job import Job

OVER = {"ended", "stopped", "overtime", "cancelled", "dropped", "not begun"}
STATE = "state.json"


@dataclass
class State:
    """Of a job: waiting, running, ended, or why it is over without having ended, with its exit code and seconds.

    stopped: by the clock of the run. overtime: beyond its limit, while others waited for cards. cancelled: while it
    ran, by a person; dropped: before it began. not begun: it would not have ended in time.
    """

    status: str = "waiting"
    rc: int | None = None
    seconds: float = 0.0
    expected: float = 0.0
    most: float = 0.0
    begun: float | None = None  # seconds after the run began
    cards: tuple[str, ...] = ()
    copied: tuple[str, ...] = ()


@contextmanager
def held_back() -> Iterator[None]:
    """Inside the block an interruption waits for its end."""
    came = list[int]()
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    own = {sign: signal.signal(sign, lambda number, _: came.append(number)) for sign in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield
    finally:
        for sign, handler in own.items():
            signal.signal(sign, signal.SIG_DFL if handler is None else handler)
    for number in came[:1]:
        os.kill(os.getpid(), number)


class Machine(Protocol):
    """What jobs run on: processes (`Processes`), or nothing (`Expected`)."""

    def now(self) -> float:
        """Seconds of a clock."""

    def sleep(self, seconds: float) -> None:
        """Until the next look."""

    def begin(self, job: Job, cards: Sequence[str]) -> None:
        """Start a job on its cards."""

    def code(self, name: str) -> int | None:
        """The exit code of a job that is over."""

    def stop(self, name: str) -> int:
        """End a job and all that it has started; its exit code."""

    def collect(self, job: Job) -> tuple[str, ...]:
        """Keep what a job that is over has written; the names of the files."""

    def there(self, name: str, file: str) -> bool:
        """Has a job of the run, or of an earlier one, written a file?"""


class Schedule:
    """Runs jobs on a machine's cards, in the order given, each as soon as cards are free.

    Args:
        jobs: In their order.
        machine: That they run on.
        cards: As CUDA_VISIBLE_DEVICES names them.
        seconds: After which nothing runs any more. What is not expected to end by then is not begun.
        out: A folder for `state.json`, which says how far it is at any time, and where others ask for jobs to be
            stopped (`asking`). None: neither.
        sleep: Between two looks, in seconds.
    """

    def __init__(
        self,
        jobs: Sequence[Job],
        machine: Machine,
        cards: Sequence[str],
        seconds: float,
        *,
        out: Path | None = None,
        sleep: float = 0.5,
    ) -> None:
        self.jobs = {job.name: job for job in jobs}
        self.states = {job.name: State(expected=job.seconds, most=job.limit) for job in jobs}
        self.machine, self.free, self.out, self.sleep = machine, Free(cards), out, sleep
        self.start = machine.now()
        self.end = self.start + seconds
        self.running: dict[str, float] = {}  # when each was begun
        if out is not None:
            out.mkdir(parents=True, exist_ok=True)
            asking.clear(out)

    def run(self) -> dict[str, State]:
        """Until every job has ended, was stopped, or can not begin any more."""
        try:
            while self.step():
                self.machine.sleep(self.sleep)
        finally:
            for name in list(self.running):
                self.stop(name, "stopped")
            self.save()
        return self.states

    def step(self) -> bool:
        """Collect what ended, stop what has to be, begin what can; whether anything is left."""
        for name in list(self.running):
            code = self.machine.code(name)
            if code is not None:
                self.collect(name, "ended", code)
            elif self.machine.now() >= self.end:
                self.stop(name, "stopped")
        self.obey()
        self.fill()
        late = self.latest()
        if late is not None:
            self.stop(late, "overtime")
            self.fill()
        self.save()
        return bool(self.running) or bool(self.waiting())

    def waiting(self) -> list[str]:
        """The jobs that wait, in their order."""
        return [name for name, state in self.states.items() if state.status == "waiting"]

    def fill(self) -> None:
        """Begin each job that waits if it can end in time, what it needs is there, and cards are free."""
        for name in self.waiting():
            job, now, state = self.jobs[name], self.machine.now(), self.states[name]
            if now + job.seconds > self.end or self.in_vain(job):
                state.status = "not begun"
            elif self.ready(job) and (cards := self.free.take(job)) is not None:
                with held_back():  # who is interrupted here has to know of the job, to end it
                    self.machine.begin(job, cards)
                    self.running[name] = now
                    state.status, state.begun, state.cards = "running", now - self.start, cards

    def ready(self, job: Job) -> bool:
        """Is there what it needs of other jobs?"""
        over = all(self.states[other].status in OVER for other in job.after if other in self.states)
        return over and all(self.machine.there(other, file) for other, file in job.reads)

    def in_vain(self, job: Job) -> bool:
        """Does it wait for a file that nobody writes any more?"""
        ends = (other for other, file in job.reads if not self.machine.there(other, file))
        return any(other not in self.states or self.states[other].status in OVER for other in ends)

    def latest(self) -> str | None:
        """Of the jobs beyond their limits the one that is furthest, if another one waits: after `fill`, for cards."""
        now = self.machine.now()
        beyond = {name: now - begun - self.jobs[name].limit for name, begun in self.running.items()}
        late = {name: seconds for name, seconds in beyond.items() if seconds > 0}
        wait_for_cards = any(self.ready(self.jobs[name]) for name in self.waiting())
        return max(late, key=late.__getitem__) if late and wait_for_cards else None

    def obey(self) -> None:
        """Stop the jobs that somebody asks to stop, and drop those that wait."""
        for name in asking.asked(self.out) if self.out is not None else ():
            if name in self.running:
                self.stop(name, "cancelled")
            elif name in self.waiting():
                self.states[name].status = "dropped"

    def stop(self, name: str, status: str) -> None:
        """End a job and all that it has started."""
        self.collect(name, status, self.machine.stop(name))

    def collect(self, name: str, status: str, code: int) -> None:
        """Free the cards of a job that is over, and keep what it wrote."""
        state = self.states[name]
        state.seconds = self.machine.now() - self.running.pop(name)
        state.copied = self.machine.collect(self.jobs[name])
        state.status, state.rc = status, code
        self.free.give_back(self.jobs[name], state.cards)

    def save(self) -> None:
        """Write `state.json`, whole."""
        if self.out is None:
            return
        now = self.machine.now()
        told = {name: asdict(state) for name, state in self.states.items()}
        for name, begun in self.running.items():
            told[name]["seconds"] = now - begun
        data = {"pid": os.getpid(), "left": max(self.end - now, 0.0), "jobs": told}
        write_whole(self.out / STATE, json.dumps(data, indent=1).encode())
