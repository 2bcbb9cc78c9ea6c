"""Measures on cards, several commands at once: one on each card, one on several, or several on one.

python -m recipes.jobs list                                   # the commands, cards and seconds of every job
python -m recipes.jobs run lookup_kernels extend_screen --out measured --seconds 560
python -m recipes.jobs run packs groups --out measured --seconds 1200 --cards 2 --dry-run
python -m recipes.jobs run packs groups --out measured --seconds 1200 --detach
python -m recipes.jobs wait measured --seconds 500            # for what runs detached
python -m recipes.jobs stop measured groups                   # a job of it
"""

from __future__ import annotations

import argparse
import shlex
import signal
import subprocess
import sys
import time
from collections.abc import Iterable, Sequence
from pathlib import Path

import yaml

from hf_longctx.storage.files import check_folder
from recipes.cards import visible
from recipes.config import check_keys
from recipes.tables import print_table

from .job import Job
from .needs import check, check_documents, check_files
from .plan import plan, used
from .processes import ROOT, Processes
from .schedule import STATE, Schedule
from .watching import TOLD, check_names, nothing, shown, stop, wait

FILE = Path(__file__).parent / "jobs.yaml"
MODEL, DOCUMENTS = "smollm2-135m-instruct", "data/documents"
KEYS = {"command", "cards", "seconds", "writes"}
OPTIONAL = {"most", "after", "reads", "share"}


def jobs(
    file: Path = FILE, model: str = MODEL, documents: str = DOCUMENTS, out: Path = Path("measured")
) -> dict[str, Job]:
    """Those of a file, for a model, a folder of texts and a folder for what they write."""
    found = {}
    for name, one in yaml.safe_load(file.read_text(encoding="utf-8")).items():
        check_keys(one, KEYS | (OPTIONAL & one.keys()))
        places = {"model": model, "documents": documents, "out": str(out / name), "run": str(out)}
        command = one["command"].format(**{place: shlex.quote(text) for place, text in places.items()})
        writes = tuple(str(ROOT / file) for file in one["writes"])
        needs = tuple(one.get("after", ())), tuple(one.get("reads", {}).items())
        share = one.get("share", 1.0)
        found[name] = Job(name, command, one["cards"], one["seconds"], writes, one.get("most"), *needs, share)
    for name, job in found.items():
        for key, others in (("after", job.after), ("reads", [other for other, _ in job.reads])):
            if unknown := [other for other in others if other not in found or other == name]:
                raise ValueError(f"{name}: {key}: {', '.join(unknown)}: expected other jobs of {file.name}.")
    return found


def main(words: list[str] | None = None) -> int:
    """The command; see the module's docstring."""
    asked = parser().parse_args(words)
    try:
        if asked.what == "wait":
            return wait(asked.out, asked.seconds)
        if asked.what == "stop":
            return stop(asked.out, asked.names, asked.seconds)
        if asked.what == "list":
            return listed(jobs(asked.file).values())
        return run(asked, list(words or sys.argv[1:]))
    except (ValueError, ImportError, OSError) as error:
        print(f"Error: {getattr(error, 'strerror', None) or error}", file=sys.stderr)
        return 2


def listed(known: Iterable[Job]) -> int:
    """Print each job's cards, seconds and command."""
    for job in known:
        cards = f"{job.cards} card{'s' * (job.cards > 1)}" if job.share == 1 else f"{job.share:g} card"
        print(f"{job.name:<22} {cards:<8} {job.seconds:>4.0f} s  {job.command.splitlines()[-1]}")
    return 0


def run(asked: argparse.Namespace, words: list[str]) -> int:
    """Run the jobs that are asked for, begin to, or say when each would run; ValueError for what cannot work."""
    out, model, documents = asked.out.absolute(), asked.model, asked.documents.absolute()
    model = str(Path(model).absolute()) if Path(model).exists() else model  # jobs begin in the checkout
    known = jobs(asked.file, model, str(documents), out)
    check_names(asked.names, known)
    ours = [known[name] for name in asked.names]
    if asked.dry_run:  # of a machine that need not be this one
        cards = [str(card) for card in range(asked.cards)] if asked.cards else visible()
    else:
        cards = visible()[: asked.cards]
        check(ours)
        check_documents(ours, documents)
        check_files(ours, out)
    if large := [job.name for job in ours if job.cards > len(cards)]:
        more = " --cards N plans for a machine of N." if asked.dry_run else ""
        raise ValueError(f"{', '.join(large)}: more GPUs than the {len(cards)} that there are here.{more}")
    if asked.dry_run:
        return planned(ours, cards, asked.seconds)
    check_folder(out, "--out")
    if asked.detach:
        return detached(words, out)
    (out / TOLD).unlink(missing_ok=True)  # of an earlier run
    signal.signal(signal.SIGTERM, signal.default_int_handler)  # the jobs end with this process
    states = Schedule(ours, Processes(out), cards, asked.seconds, out=out).run()
    return shown(out, {name: vars(state) for name, state in states.items()})


def planned(ours: Sequence[Job], cards: Sequence[str], seconds: float) -> int:
    """Print when each job would begin and end; 1 if some would not."""
    states = plan(ours, cards, seconds)
    begun = {name: state for name, state in states.items() if state.begun is not None}
    rows = [["begins", "ends", "cards", "job"]]
    for name, state in sorted(begun.items(), key=lambda item: item[1].begun or 0.0):
        begins = state.begun or 0.0
        rows.append([f"{begins:.0f}", f"{begins + state.seconds:.0f}", ",".join(state.cards), name])
    print_table(rows)
    last, share = used(begun.values(), len(cards))
    print(f"The last ends {last:.0f} s after the beginning, of {seconds:.0f}; cards are in use for {share:.0%} of it.")
    if left := [name for name in states if name not in begun]:
        print(f"Not begun, since they would end too late: {', '.join(left)}.")
    return int(bool(left))


def detached(words: list[str], out: Path) -> int:
    """Begin the same command anew, so that it goes on when this one ends."""
    words.remove("--detach")
    out.mkdir(parents=True, exist_ok=True)
    state = out / STATE
    state.unlink(missing_ok=True)
    command = [sys.executable, "-m", "recipes.jobs", *words]
    with (out / "jobs.log").open("wb") as log:
        process = subprocess.Popen(command, stdout=log, stderr=log, stdin=subprocess.DEVNULL, start_new_session=True)
    while process.poll() is None and not state.exists():
        time.sleep(0.1)
    return 0 if state.exists() else nothing(out)


def parser() -> argparse.ArgumentParser:
    """Of `list`, `run`, `wait` and `stop`."""
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
    run.add_argument("--dry-run", action="store_true", help="say when each would begin and end, and run nothing")
    waiting = parts.add_parser("wait", help="wait for a run that is detached, or for a job of it that fails")
    stopping = parts.add_parser("stop", help="stop jobs of a run, and drop those that wait")
    for part, seconds in ((waiting, 600.0), (stopping, 60.0)):
        part.add_argument("out", type=Path)
        part.add_argument("--seconds", type=float, default=seconds, help="after which this command returns 3")
    stopping.add_argument("names", nargs="+", metavar="NAME")
    return found


if __name__ == "__main__":
    sys.exit(main())
