"""Which jobs run when: one on each card, or one on several, until they are done or the time is over."""

from __future__ import annotations

import contextlib
import json
import os
import shutil
import signal
import subprocess
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

from hf_longctx.storage.files import write_whole
from recipes.cards import VISIBLE

ROOT = Path(__file__).resolve().parents[2]
GRACE = 15.0  # seconds between asking a job to end and ending it


@dataclass(frozen=True)
class Job:
    """One command.

    Args:
        name: Of its log, and of its folder for files that are not results.
        command: As a shell takes it.
        cards: How many it takes, all to itself.
        seconds: It is expected to take.
        writes: Files that it writes, or adds to: copied into the folder of the run.
    """

    name: str
    command: str
    cards: int
    seconds: float
    writes: tuple[str, ...] = ()


@dataclass
class State:
    """Of a job: waiting, running, ended, stopped (by the clock) or not begun; with its exit code and seconds."""

    status: str = "waiting"
    rc: int | None = None
    seconds: float = 0.0
    expected: float = 0.0
    copied: tuple[str, ...] = ()


class Schedule:
    """Runs jobs on a machine's cards, in the order given, each as soon as cards are free.

    Args:
        jobs: In their order.
        out: A folder for logs, copies of result files, and `state.json`, which says how far it is at any time.
        cards: As CUDA_VISIBLE_DEVICES names them.
        seconds: After which nothing runs any more. What is not expected to end by then is not begun.
        sleep: Between two looks, in seconds.
    """

    def __init__(
        self, jobs: Sequence[Job], out: Path, cards: Sequence[str], seconds: float, *, sleep: float = 0.5
    ) -> None:
        self.jobs = {job.name: job for job in jobs}
        self.states = {job.name: State(expected=job.seconds) for job in jobs}
        self.out, self.free, self.sleep = out, list(cards), sleep
        self.begun = time.time()
        self.end = self.begun + seconds
        self.running: dict[str, tuple[subprocess.Popen[bytes], list[str], float]] = {}
        out.mkdir(parents=True, exist_ok=True)

    def run(self) -> dict[str, State]:
        """Until every job has ended, was stopped, or can not begin any more."""
        try:
            while self.step():
                time.sleep(self.sleep)
        finally:
            for name in list(self.running):
                self.stop(name)
            self.save()
        return self.states

    def step(self) -> bool:
        """Collect what ended, stop what is out of time, begin what can; whether anything is left."""
        for name, (process, _, _) in list(self.running.items()):
            if process.poll() is not None:
                self.collect(name, "ended")
            elif time.time() >= self.end:
                self.stop(name)
        for name, state in self.states.items():
            if state.status == "waiting":
                self.consider(name)
        self.save()
        return bool(self.running) or any(state.status == "waiting" for state in self.states.values())

    def consider(self, name: str) -> None:
        """Begin a job if it can end in time, and cards are free."""
        job, now = self.jobs[name], time.time()
        if now + job.seconds > self.end:
            self.states[name].status = "not begun"
        elif job.cards <= len(self.free):
            cards, self.free = self.free[: job.cards], self.free[job.cards :]
            shown = {VISIBLE: ",".join(cards)}
            with (self.out / f"{name}.log").open("wb") as log:
                process = subprocess.Popen(
                    ["bash", "-c", job.command],
                    stdout=log,
                    stderr=subprocess.STDOUT,
                    stdin=subprocess.DEVNULL,
                    cwd=ROOT,
                    env=os.environ | shown | {"PYTHONUNBUFFERED": "1"},
                    start_new_session=True,  # so that all of its processes can be ended
                )
            self.running[name] = (process, cards, now)
            self.states[name].status = "running"

    def stop(self, name: str) -> None:
        """End a job and all that it has started."""
        process = self.running[name][0]
        for sign in (signal.SIGINT, signal.SIGTERM, signal.SIGKILL):
            try:
                os.killpg(process.pid, sign)
                process.wait(GRACE)
                break
            except subprocess.TimeoutExpired:
                continue
            except ProcessLookupError:
                process.wait()
                break
        self.collect(name, "stopped")

    def collect(self, name: str, status: str) -> None:
        """Free the cards of a job that is over, and copy what it wrote."""
        process, cards, begun = self.running.pop(name)
        with contextlib.suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)  # what it has left behind would hold a card
        self.free = sorted([*self.free, *cards])
        written = [Path(file) for file in self.jobs[name].writes]
        written = [file for file in written if file.exists() and file.stat().st_mtime >= begun - 1]
        for file in written:
            shutil.copy2(file, self.out / file.name)
        state = self.states[name]
        state.status, state.rc, state.seconds = status, process.returncode, time.time() - begun
        state.copied = tuple(file.name for file in written)

    def save(self) -> None:
        """Write `state.json`, whole."""
        told = {name: asdict(state) for name, state in self.states.items()}
        for name, (_, _, begun) in self.running.items():
            told[name]["seconds"] = time.time() - begun
        data = {"pid": os.getpid(), "left": max(self.end - time.time(), 0.0), "jobs": told}
        write_whole(self.out / "state.json", json.dumps(data, indent=1).encode())
