"""Measures on cards, several commands at once: one on each card, or one on several.

python -m recipes.jobs list                                   # the commands, cards and seconds of every job
python -m recipes.jobs run lookup_kernels extend_screen --out measured --seconds 560
python -m recipes.jobs run packs groups --out measured --seconds 1200 --detach
python -m recipes.jobs wait measured --seconds 500            # for what runs detached
"""

from __future__ import annotations

import argparse
import difflib
import json
import shlex
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import yaml

from recipes.cards import visible
from recipes.config import check_keys

from .needs import check, check_documents
from .schedule import Job, Schedule

FILE = Path(__file__).parent / "jobs.yaml"
ROOT = Path(__file__).resolve().parents[2]
MODEL, DOCUMENTS = "smollm2-135m-instruct", "data/documents"
RUNS_ON = 3  # the exit code of `wait` when the time is over and jobs run on
KEYS = {"command", "cards", "seconds", "writes"}
OVER = {"ended", "stopped", "not begun"}


def jobs(
    file: Path = FILE, model: str = MODEL, documents: str = DOCUMENTS, out: Path = Path("measured")
) -> dict[str, Job]:
    """Those of a file, for a model, a folder of texts and a folder for what they write."""
    found = {}
    for name, one in yaml.safe_load(file.read_text(encoding="utf-8")).items():
        check_keys(one, KEYS)
        places = {"model": model, "documents": documents, "out": str(out / name), "run": str(out)}
        command = one["command"].format(**{place: shlex.quote(text) for place, text in places.items()})
        writes = tuple(str(ROOT / file) for file in one["writes"])
        found[name] = Job(name, command, one["cards"], one["seconds"], writes)
    return found


def chosen(names: list[str], known: dict[str, Job]) -> list[Job]:
    """Jobs by their names; ValueError names one that is near."""
    for name in names:
        if name not in known:
            near = difflib.get_close_matches(name, known, 1)
            hint = f" Did you mean {near[0]}?" if near else " `list` shows them."
            raise ValueError(f"there is no job {name!r}.{hint}")
    return [known[name] for name in names]


def main(words: list[str] | None = None) -> int:
    """The command; see the module's docstring."""
    asked = parser().parse_args(words)
    if asked.what == "wait":
        return wait(asked.out, asked.seconds)
    if asked.what == "list":
        for job in jobs(asked.file).values():
            cards = f"{job.cards} card{'s' * (job.cards > 1)}"
            print(f"{job.name:<22} {cards:<8} {job.seconds:>4.0f} s  {job.command.splitlines()[-1]}")
        return 0
    out, model, documents = asked.out.absolute(), asked.model, asked.documents.absolute()
    model = str(Path(model).absolute()) if Path(model).exists() else model  # jobs begin in the checkout
    cards = visible()[: asked.cards]
    try:
        ours = chosen(asked.names, jobs(asked.file, model, str(documents), out))
        check(ours)
        check_documents(ours, documents)
        if large := [job.name for job in ours if job.cards > len(cards)]:
            raise ValueError(f"{', '.join(large)}: more GPUs than the {len(cards)} that there are here.")
    except (ValueError, ImportError) as error:
        print(f"Error: {error}", file=sys.stderr)
        return 2
    if asked.detach:
        return detached(list(words or sys.argv[1:]), out)
    signal.signal(signal.SIGTERM, signal.default_int_handler)  # the jobs end with this process
    return shown(out, {name: vars(state) for name, state in Schedule(ours, out, cards, asked.seconds).run().items()})


def detached(words: list[str], out: Path) -> int:
    """Begin the same command anew, so that it goes on when this one ends."""
    words.remove("--detach")
    out.mkdir(parents=True, exist_ok=True)
    state = out / "state.json"
    state.unlink(missing_ok=True)
    command = [sys.executable, "-m", "recipes.jobs", *words]
    with (out / "jobs.log").open("wb") as log:
        process = subprocess.Popen(command, stdout=log, stderr=log, stdin=subprocess.DEVNULL, start_new_session=True)
    while process.poll() is None and not state.exists():
        time.sleep(0.1)
    return 0 if state.exists() else failed(out)


def wait(out: Path, seconds: float) -> int:
    """Until the jobs of a detached run are over or the time is; 3 if they run on."""
    end = time.time() + seconds
    while True:
        found = json.loads((out / "state.json").read_text(encoding="utf-8")) if (out / "state.json").exists() else None
        over = found is not None and all(one["status"] in OVER for one in found["jobs"].values())
        if over or time.time() >= end:
            break
        time.sleep(min(1.0, max(end - time.time(), 0.05)))
    if found is None:
        return failed(out)
    code = shown(out, found["jobs"])
    if over:
        return code
    return RUNS_ON if Path(f"/proc/{found['pid']}").exists() else failed(out)


def failed(out: Path) -> int:
    """Say why nothing runs in a folder."""
    log = out / "jobs.log"
    died = f"the run in {out} has died: {log.read_text(encoding='utf-8')}" if log.exists() else None
    print(f"Error: {died or f'there is no run in {out}.'}", file=sys.stderr)
    return 2


def shown(out: Path, states: dict[str, dict[str, Any]]) -> int:
    """Print how each job ended, its seconds and the last line of its log; 1 unless all ended well, the exit code."""
    rows = [["job", "status", "exit", "seconds", "expected", "last line"]]
    for name, one in states.items():
        log = out / f"{name}.log"
        lines = log.read_text(encoding="utf-8", errors="replace").split("\n") if log.exists() else []
        last = next((line for line in reversed(lines) if line.strip()), "")
        rc = "" if one["rc"] is None else str(one["rc"])
        rows.append([name, one["status"], rc, f"{one['seconds']:.0f}", f"{one['expected']:.0f}", last.strip()[:100]])
    widths = [max(len(row[column]) for row in rows) for column in range(len(rows[0]))]
    for row in rows:
        print("  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip())
    return int(any(one["status"] != "ended" or one["rc"] != 0 for one in states.values()))


def parser() -> argparse.ArgumentParser:
    """Of `list`, `run` and `wait`."""
    found = argparse.ArgumentParser(
        prog="python -m recipes.jobs", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parts = found.add_subparsers(dest="what", required=True)
    listing = parts.add_parser("list", help="the jobs")
    run = parts.add_parser("run", help="run some, in this order")
    for part in (listing, run):
        part.add_argument("--file", type=Path, default=FILE, help="with the jobs; jobs.yaml here by default")
    run.add_argument("names", nargs="+", metavar="NAME")
    run.add_argument("--out", type=Path, required=True, help="a folder for logs and copies of result files")
    run.add_argument("--seconds", type=float, required=True, help="after which nothing runs any more")
    run.add_argument("--model", default=MODEL, help="a folder, a Hub id or a .gguf file of SmolLM2-135M")
    run.add_argument("--documents", type=Path, default=Path(DOCUMENTS), help="see recipes.benchmarks.documents")
    run.add_argument("--cards", type=int, help="GPUs to use; all of the machine by default")
    run.add_argument("--detach", action="store_true", help="go on after this command has ended; see wait")
    waiting = parts.add_parser("wait", help="wait for a run that is detached")
    waiting.add_argument("out", type=Path)
    waiting.add_argument("--seconds", type=float, default=600.0)
    return found


if __name__ == "__main__":
    sys.exit(main())
