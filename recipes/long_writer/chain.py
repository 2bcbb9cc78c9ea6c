"""The whole chain: score the untrained model, fine-tune, prefer, reinforce, score after each; report and cards.

    python -m recipes.long_writer.chain --minutes 9 --chats writing.jsonl --writing writing.held_back.jsonl
    python -m recipes.long_writer.chain --minutes 25 --call-minutes 9 ... --resume
    python -m recipes.long_writer.chain --smoke

See README.md beside this file.
"""

from __future__ import annotations

import json
import math
import tempfile
import time
import traceback
from collections.abc import Iterable
from functools import partial
from pathlib import Path
from typing import Any

import torch
from transformers.utils import logging as transformers_logging

from hf_longctx.evaluation.results import result_file, write_results
from hf_longctx.hub import load
from hf_longctx.upstream.installing import Package, check_packages
from recipes.benchmarks.reading import command_without_paths
from recipes.cards import free
from recipes.long_writer import card, train_dpo, train_grpo, train_sft
from recipes.long_writer.budget import Budget, NotFinishedError
from recipes.long_writer.command import parser, settings
from recipes.long_writer.data import asked
from recipes.long_writer.figures import BANNED, UNTRAINED, gained, risen, rows
from recipes.long_writer.progress import Progress
from recipes.long_writer.score import NEEDS, NoTimeError, Scores

STAGES = {"sft": train_sft.train, "dpo": train_dpo.train, "grpo": train_grpo.train}
TRAINED = 2.0  # times the time of an untrained model for the scores of a trained one
LONGER = 2.0  # times the time that the scores of a model have, at which one that was begun is ended
BEGIN = {"dpo": "sft", "grpo": "sft"}  # which model they begin with, if it is trained


def run(
    config: dict[str, Any], *, minutes: float | None = None, call: float | None = None, resume: bool = False
) -> dict[str, Any]:
    """The chain: what `report.json` in the folder `out` has too.

    Without `minutes` every stage takes all of its steps. With them, each gets its part of `chain`, one whose part is 0
    is left out, and scores that there is no time for are listed as not measured. With `resume` stages and scores that
    are complete are skipped, a stage that was interrupted goes on from its last checkpoint, and `minutes` are those of
    all calls together.

    Raises:
        NotFinishedError: The minutes of this `call` are over. What was done is kept, to go on with.
        Exception: That of a stage which failed. Stages behind it that begin with another model come before.
    """
    out = Path(config["out"])
    shares = {name: config["chain"][name] for name in STAGES}
    stages = {name: part for name, part in shares.items() if part or minutes is None}
    # files that are no chats are named before anything is measured
    held_back = config["score"]["writing"]
    for _ in asked([*config["chats"], *([held_back] if held_back else [])]):
        pass
    check_packages((*NEEDS, *needed(stages)))
    progress = Progress(config, list(stages), resume=resume)
    budget = Budget(minutes, call, out / "seconds.json", resume=resume)
    parts = dict(stages)
    waiting = [1.0, 1.0, *[TRAINED] * len(stages)]  # what the scores of each model weigh

    def until() -> dict[str, float]:
        """When the next scores have to be done: what the trainings to come leave is for the scores."""
        if minutes is None or budget.ends is None:
            return {}
        now = time.monotonic()
        left = max(budget.ends - now - 60 * minutes * sum(parts.values()), 0)
        own = left * waiting[0] / sum(waiting)
        # one that was begun may take some of what is for the others
        return {"until": now + own, "last": now + min(LONGER * own, left)}

    report: dict[str, Any] = {"base": Path(config["model"]).name, "config": config, "stages": {}, "lines": {}}
    found: list[dict[str, Any]] = []
    failures: list[Exception] = []

    def keep() -> None:
        """Write what is known by now: a run that is killed keeps what it has measured."""
        written(report, found, out)
        budget.keep()

    def score(name: str, model: str, banned: bool = False) -> None:
        line: dict[str, Any] = {}
        report["lines"][name] = line
        more: dict[str, Any] = {**until(), "stop": budget.stop, "half": budget.half, "banned": banned}
        # what an answer is like whose end is banned is of no use
        texts = None if banned else out / f"texts/{name}.jsonl"
        more |= {"into": line, "kept": keep, "texts": texts}
        try:
            report["lines"][name] = scored(model, config, sizes=progress.sizes(name), **more)
        except NoTimeError:
            keep()
            raise NotFinishedError(f"the scores of {name}", out) from None
        del waiting[0]

    for name, banned in ((UNTRAINED, False), (BANNED, True)):
        score(name, config["model"], banned)
    for name, part in stages.items():
        before, start = begins_with(config, name, stages)
        seconds = None if minutes is None else 60 * minutes * part
        train = partial(STAGES[name], config, model=start, seconds=seconds, stop=budget.stop)
        try:
            report["stages"][name] = progress.stage(name, start, train)
        except SystemExit:  # the time of this call is over, or Ctrl-C: what it took counts
            keep()
            raise
        except Exception as error:
            keep()
            del parts[name]
            del waiting[0]
            if not any(BEGIN.get(other) != name for other in parts):
                raise
            traceback.print_exc()
            failures.append(let_go(error))
            continue
        finally:
            free()
        keep()
        del parts[name]
        score(name, str(out / name / "model"))
        found += rows(report["lines"], name)
        found += gained(report["lines"], name, before)
        found += risen(name, report["stages"][name].get("curve", {}).get("reward", []))
        # after each stage: what was measured is kept if the next one fails
        report |= written(report, found, out)
        card.write(report, name, out)
    budget.keep()
    if failures:
        raise failures[0]
    return report


def begins_with(config: dict[str, Any], name: str, stages: Iterable[str]) -> tuple[str, str]:
    """What a stage of a chain of some stages begins with: its name, and where that model is."""
    before = BEGIN[name] if BEGIN.get(name) in stages else UNTRAINED
    return before, config["model"] if before == UNTRAINED else str(Path(config["out"]) / before / "model")


def let_go(error: Exception) -> Exception:
    """An error without the models that were at work when it came."""
    one: BaseException | None = error
    while one is not None:
        traceback.clear_frames(one.__traceback__)
        one = one.__context__
    return error


def written(report: dict[str, Any], found: list[dict[str, Any]], out: Path) -> dict[str, Any]:
    """The report with commit, hardware and versions, in `out`."""
    more = {key: value for key, value in report.items() if key in ("base", "config", "stages", "lines")}
    file = result_file(found, model=str(report["config"]["model"]), command=command_without_paths(), **more)
    for stage in report["stages"].values():
        file["versions"] |= stage["versions"]
    write_results(out / "report.json", file)
    return file


def scored(model: str, config: dict[str, Any], **how: Any) -> dict[str, Any]:
    """The scores of a saved model, `how` as `Scores` takes it."""

    def give() -> Any:
        return load(model, dtype=config["save_dtype"] if torch.cuda.is_available() else "auto")

    try:
        return Scores(give, config, **how).all()
    finally:
        free()


def needed(stages: Iterable[str]) -> list[Package]:
    """Those of some stages, of which each training says its own."""
    return [package for name in stages for package in getattr(STAGES[name], "packages", ())]


packages = *NEEDS, *needed(STAGES)  # of this command


def main() -> None:
    """The command; see the module's docstring."""
    found = parser(__doc__)
    found.add_argument("--writing", help="a file of rows that are held back, in place of the config's")
    found.add_argument("--call-minutes", type=float, help="after which this command ends, for --resume to go on from")
    found.add_argument("--resume", action="store_true", help="skip what is complete, and go on with what is not")
    found.add_argument("--smoke", action="store_true", help="a tiny model on a CPU, compared with expected.json")
    args = found.parse_args()
    if args.smoke and args.resume:
        found.error("--smoke begins in a new folder each time, so that there is nothing to --resume. Leave one out.")
    transformers_logging.set_verbosity_error()  # of texts that are longer than the model's window
    if args.smoke:
        from recipes.long_writer.smoke import check, figures, prepare

        with tempfile.TemporaryDirectory() as folder:
            config = prepare(Path(folder))
            check(figures(run(config), Path(config["out"])))
        return
    if args.call_minutes is not None and not 0 < args.call_minutes < math.inf:
        found.error(f"--call-minutes {args.call_minutes:g}: expected a number above 0.")
    config = settings(args)
    config["score"]["writing"] = args.writing or config["score"]["writing"]
    report = run(config, minutes=args.minutes, call=args.call_minutes, resume=args.resume)
    shown = [(one["what"], one["value"], one["bar"], one["holds"]) for one in report["rows"]]
    print(json.dumps(shown, indent=1))


if __name__ == "__main__":
    main()
