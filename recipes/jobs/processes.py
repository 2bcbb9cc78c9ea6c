"""Jobs as processes of this machine, each with its log, ended with all that they have started."""

from __future__ import annotations

import contextlib
import os
import shutil
import signal
import subprocess
import time
from collections.abc import Sequence
from pathlib import Path

from recipes.cards import VISIBLE

from .job import Job

ROOT = Path(__file__).resolve().parents[2]
LIMITS = Path(__file__).parent / "share"  # whose sitecustomize.py limits the memory of a process
GRACE = 15.0  # seconds between asking a job to end and ending it


def interruptible() -> None:
    """Let an interrupt end this process, also where a shell began it in the background, by which it is ignored."""
    signal.signal(signal.SIGINT, signal.SIG_DFL)


def limited(job: Job) -> dict[str, str]:
    """The environment by which no process of a job holds more of a card's memory than its share."""
    if job.share == 1:
        return {}
    paths = [str(LIMITS), *filter(None, [os.environ.get("PYTHONPATH")])]
    return {"HF_LONGCTX_SHARE": str(job.share), "PYTHONPATH": os.pathsep.join(paths)}


class Processes:
    """A `Machine` of a schedule.

    Args:
        out: A folder for logs, and copies of result files.
    """

    def __init__(self, out: Path) -> None:
        self.out = out
        self.begun: dict[str, tuple[subprocess.Popen[bytes], float]] = {}
        out.mkdir(parents=True, exist_ok=True)

    def now(self) -> float:
        """The time of day, in seconds."""
        return time.time()

    def sleep(self, seconds: float) -> None:
        """Wait."""
        time.sleep(seconds)

    def begin(self, job: Job, cards: Sequence[str]) -> None:
        """Start a job that sees its cards alone."""
        begun = self.now()
        with (self.out / f"{job.name}.log").open("wb") as log:
            process = subprocess.Popen(
                ["bash", "-c", job.command],
                stdout=log,
                stderr=subprocess.STDOUT,
                stdin=subprocess.DEVNULL,
                cwd=ROOT,
                env=os.environ | {VISIBLE: ",".join(cards), "PYTHONUNBUFFERED": "1"} | limited(job),
                start_new_session=True,  # so that all of its processes can be ended
                preexec_fn=interruptible,
            )
        self.begun[job.name] = process, begun

    def code(self, name: str) -> int | None:
        """The exit code of a job that is over."""
        return self.begun[name][0].poll()

    def stop(self, name: str) -> int:
        """Interrupt a job and all that it has started, ask it to end, and end it."""
        process = self.begun[name][0]
        for sign in (signal.SIGINT, signal.SIGTERM, signal.SIGKILL):
            with contextlib.suppress(ProcessLookupError):
                os.killpg(process.pid, sign)
            with contextlib.suppress(subprocess.TimeoutExpired):
                return process.wait(GRACE)
        return process.wait()

    def collect(self, job: Job) -> tuple[str, ...]:
        """End what a job has left behind, and copy what it wrote."""
        process, begun = self.begun.pop(job.name)
        with contextlib.suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)  # what it has left behind would hold a card
        files = [Path(file) for file in job.writes]
        written = [file for file in files if file.exists() and file.stat().st_mtime >= begun - 1]
        for file in written:
            shutil.copy2(file, self.out / file.name)
        return tuple(file.name for file in written)

    def there(self, name: str, file: str) -> bool:
        """Has a job written a file into its folder?"""
        return (self.out / name / file).exists()
