"""What another command sees of a run, and does to it: wait, and stop some of its jobs."""

from __future__ import annotations

import json
import sys
import time
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

from hf_longctx.near import did_you_mean
from recipes.tables import print_table

from . import asking
from .schedule import OVER, STATE

RUNS_ON = 3  # the exit code of `wait` when the time is over and jobs run on
FAILED = 4  # the one of a job that has failed while others run on or wait
TOLD = ".told.json"  # the failures for which `wait` has returned
LINES = 5  # of the log of a job that has failed


def wait(out: Path, seconds: float) -> int:
    """Until the jobs of a run are over, one has failed that was not told of yet, or the time is over."""
    end = time.time() + seconds
    while True:
        found, alive = look(out)
        jobs = {} if found is None else found["jobs"]
        over = found is not None and all(one["status"] in OVER for one in jobs.values())
        failures = {name for name, one in jobs.items() if failed(one)}
        new = failures - told(out)
        if over or new or time.time() >= end or (found is not None and not alive):
            break
        time.sleep(min(1.0, max(end - time.time(), 0.05)))
    if found is None:
        return nothing(out)
    (out / TOLD).write_text(json.dumps(sorted(failures)), encoding="utf-8")
    code = shown(out, jobs)
    if over:
        return code
    if not alive:
        return nothing(out)
    return FAILED if new else RUNS_ON


def stop(out: Path, names: Sequence[str], seconds: float) -> int:
    """Stop jobs of a run, and drop those that wait; 3 if the run has not done so before the time is over."""
    found, alive = look(out)
    if found is None:
        return nothing(out)
    check_names(names, found["jobs"])
    statuses = {name: found["jobs"][name]["status"] for name in names}
    for name, status in statuses.items():
        if status in OVER:
            print(f"{name}: {status} already")
    if alive:
        asking.ask(out, [name for name, status in statuses.items() if status not in OVER])
    end = time.time() + seconds
    while True:
        now, alive = look(out)
        jobs = (now or found)["jobs"]
        over = all(jobs[name]["status"] in OVER for name in names)
        if over or not alive or time.time() >= end:
            break
        time.sleep(0.1)
    shown(out, jobs)
    return 0 if over else RUNS_ON if alive else nothing(out)


def shown(out: Path, states: dict[str, dict[str, Any]]) -> int:
    """Print how each job ended, and the last lines of those that failed; 1 unless all ended well, the exit code."""
    rows = [["job", "status", "exit", "seconds", "expected", "most", "last line"]]
    for name, one in states.items():
        last = next(iter(last_lines(out, name, 1)), "")
        rc = "" if one["rc"] is None else str(one["rc"])
        numbers = [f"{one[key]:.0f}" for key in ("seconds", "expected", "most")]
        rows.append([name, one["status"], rc, *numbers, last.strip()[:100]])
    print_table(rows)
    for name, one in states.items():
        if failed(one):
            why = f"exit {one['rc']}" if one["status"] == "ended" else one["status"]
            print(f"\n{name}, {why}: the end of {out / name}.log")
            for line in last_lines(out, name, LINES):
                print(f"    {line.rstrip()[:300]}")
    return int(any(one["status"] != "ended" or one["rc"] != 0 for one in states.values()))


def failed(one: dict[str, Any]) -> bool:
    """Whether a job is over in a way that nobody asked for."""
    return one["rc"] != 0 if one["status"] == "ended" else one["status"] in ("overtime", "stopped")


def last_lines(out: Path, name: str, number: int) -> list[str]:
    """Of a job's log, those that are not empty; a bar that draws itself anew is its last state."""
    log = out / f"{name}.log"
    lines = log.read_text(encoding="utf-8", errors="replace").split("\n") if log.exists() else []
    lines = [line.rstrip("\r").rpartition("\r")[2] for line in lines]
    return [line for line in lines if line.strip()][-number:]


def look(out: Path) -> tuple[dict[str, Any] | None, bool]:
    """What a run says of itself, if there is one, and whether its process is there."""
    found = read(out)
    if found is None:
        return None, False
    alive = Path(f"/proc/{found['pid']}").exists()
    return (found if alive else read(out)), alive  # it may have ended after it was read


def read(out: Path) -> dict[str, Any] | None:
    """The state of a run."""
    file = out / STATE
    found: dict[str, Any] | None = json.loads(file.read_text(encoding="utf-8")) if file.exists() else None
    return found


def told(out: Path) -> set[str]:
    """The jobs whose failure `wait` has returned for."""
    return set(json.loads((out / TOLD).read_text(encoding="utf-8"))) if (out / TOLD).exists() else set()


def nothing(out: Path) -> int:
    """Say why nothing runs in a folder."""
    log = out / "jobs.log"
    why = f"there is no run in {out}."
    if log.exists() or (out / STATE).exists():
        why = f"the run in {out} has died{': ' + log.read_text(encoding='utf-8') if log.exists() else '.'}"
    print(f"Error: {why}", file=sys.stderr)
    return 2


def check_names(names: Iterable[str], known: Iterable[str]) -> None:
    """ValueError for a name that is not known, with one that is near."""
    known = list(known)
    for name in names:
        if name not in known:
            near = did_you_mean(name, known, quoted=False).rstrip() or f"There are {', '.join(known)}."
            raise ValueError(f"there is no job {name!r}. {near}")
