"""Settings side by side: each trained for some minutes, and scored at 500 tokens and 500 words only.

    python -m recipes.long_writer.screen --variants base rate_2e-4+early --chats writing.jsonl --writing held_back.jsonl
    python -m recipes.long_writer.screen --stage grpo --variants grpo_scored --model long-writer/sft/model ...
    python -m recipes.long_writer.screen --best writer-screen

`base` is the config without a variant; names that are joined by + are one setting. The model that they begin with is
scored first. `--averaged` scores each trained model once more with so much of that model's weights in its own: that
needs no training. The same command goes on where an earlier one was interrupted; what is trained or scored is not
again. A variant that fails costs no other one's rows. `--best` trains nothing: it prints the folder of the trained
model of the best row of such folders. What comes out chooses what is trained in full; it is no result.
"""

from __future__ import annotations

import argparse
import json
import shutil
import statistics
import traceback
from collections.abc import Iterator
from itertools import islice
from pathlib import Path
from typing import Any

import torch
from transformers.utils import logging as transformers_logging

from hf_longctx.evaluation.results import write_results
from hf_longctx.evaluation.rows import row
from hf_longctx.hub import load
from hf_longctx.upstream.installing import check_packages
from recipes.averaging import average_
from recipes.benchmarks.saving import Saved
from recipes.cards import free
from recipes.long_writer.chain import STAGES
from recipes.long_writer.command import parser, settings
from recipes.long_writer.compare import gains, values
from recipes.long_writer.data import WORDS, asked
from recipes.long_writer.progress import Progress, Sizes, begun
from recipes.long_writer.score import LOSS_ROWS, NEEDS, Scores
from recipes.long_writer.trainers import TRAINS

packages = *NEEDS, *TRAINS  # of this command
BASE = "base"
BEFORE = "before"  # the folder of the scores of the model that is begun with
SEEN = "loss of trained answers"
KEPT = "row.json"  # in the folder of a variant: its best row
TASKS = 0.6  # exact answers of the tasks that the best has at least: its bar
LONGEST = 500  # words that are asked for


def few(config: dict[str, Any]) -> dict[str, Any]:
    """The config with the shortest of its scores."""
    own = config["score"]
    short = {"tokens": [min(own["tokens"])], "shortest": None, "longest": min(own["longest"], LONGEST)}
    return config | {"score": own | short}


def measured(
    begun: dict[str, Any],
    configs: dict[str, dict[str, Any]],
    stage: str,
    seconds: float,
    shares: list[float],
    said: str = "",
) -> Iterator[dict[str, Any]]:
    """A row for the model that is begun with, one for each setting, and for each share of its weights in it.

    Args:
        begun: The config of the first of these rows.
        configs: By name, each with a folder of its own in one that they share.
        stage: Which training.
        seconds: Of each training, its data included.
        shares: Of the weights of the model that is begun with.
        said: Of the data, in each row.

    Raises:
        SystemExit: At the end, if some failed. The rows of the others come before.
    """
    failed, about = list[str](), f", {said}" if said else ""
    before = scored(few(begun), progress_of(few(begun), []).sizes(BEFORE))
    yield in_a_row(f"{BEFORE}{about}", before, None, {})
    for name, whole in configs.items():
        try:
            config = few(whole)
            rows = list(of_one(f"{name}{about}", config, stage, seconds, shares, before))
            write_results(Path(config["out"]) / KEPT, rows[0])
            yield from rows
        except Exception:  # the other variants are worth having
            traceback.print_exc()
            failed.append(name)
        free()
    if failed:
        raise SystemExit(f"these variants failed: {', '.join(failed)}.")


def of_one(
    name: str, config: dict[str, Any], stage: str, seconds: float, shares: list[float], before: dict[str, Any]
) -> Iterator[dict[str, Any]]:
    """Train, unless that is done, and score."""
    out = Path(config["out"])
    progress = progress_of(config, [stage])

    def train(*, resume: bool) -> dict[str, Any]:
        return dict(STAGES[stage](config, seconds=seconds, resume=resume))

    report = progress.stage(stage, config["model"], train)
    shutil.rmtree(out / stage / "run", ignore_errors=True)  # checkpoints are several times the model
    free()
    for share in (0.0, *shares):
        what = name if not share else f"{name}, {share} of the weights before"
        found = scored(config, progress.sizes(f"{stage} {share}"), str(out / stage / "model"), share)
        yield in_a_row(what, found, before, report)


def progress_of(config: dict[str, Any], stages: list[str]) -> Progress:
    """What is done of a variant."""
    return Progress(config, stages, resume=begun(Path(config["out"])))


def scored(config: dict[str, Any], sizes: Sizes, model: str | None = None, share: float = 0.0) -> dict[str, Any]:
    """The scores of a trained model with a share of the weights of the config's, or of the config's itself."""

    def give() -> Any:
        how = {"dtype": config["save_dtype"] if torch.cuda.is_available() else "auto"}
        found, tokenizer = load(model or config["model"], **how)
        if share:
            stock, _ = load(config["model"], **how)
            average_(found.requires_grad_(False), dict(stock.named_parameters()), share)
        return found, tokenizer

    texts = Path(config["out"]) / f"texts/{sizes.name}.jsonl"
    scores = Scores(give, config, sizes=sizes, texts=texts)
    seen = [row for _, row in islice(asked(config["chats"]), LOSS_ROWS)]
    try:
        found = scores.all()
        # below that of held-back ones by far more than before: learnt by heart
        found[SEEN] = sizes.run(SEEN, lambda: {"loss": scores.loss(seen)})["loss"] if seen else None
        return found
    finally:
        free()


def in_a_row(
    what: str, scores: dict[str, Any], before: dict[str, Any] | None, report: dict[str, Any]
) -> dict[str, Any]:
    """S_l over all forms, and all else beside."""
    beside: dict[str, Any] = {}
    for cell in scores["writing"]:
        named = {"S_l": "ended_length", "ended": "ended", "repeated 8-grams": "repeated"}
        beside |= {f"{said}, {cell['form']}": statistics.fmean(cell[score]) for said, score in named.items()}
        beside[f"median written over asked, {cell['form']}"] = statistics.median(cell["ratio"])
    exact = values(scores, "tasks", "exact")
    beside |= {"tasks, exact": statistics.fmean(exact), "loss": scores["loss on held-back answers"], SEEN: scores[SEEN]}
    if report:
        last = [log["loss"] for log in report["logs"][-10:] if "loss" in log]
        beside |= {"steps": report["steps"], "last training loss": statistics.fmean(last) if last else None}
    length = statistics.fmean(values(scores, "writing", "ended_length"))
    detail = {"gains": gains(scores, before)} if before else {}
    return row(f"{what}: S_l, 0 for unended", length, "", beside=beside, detail=detail)


def best(folders: list[Path]) -> Path:
    """The trained model of the row with the greatest S_l, of those whose tasks hold their bar if there are any.

    Raises:
        ValueError: The folders have no row.
    """
    found = [(file, json.loads(file.read_text(encoding="utf-8"))) for one in folders for file in one.glob(f"*/{KEPT}")]
    if not found:
        raise ValueError(f"--best {' '.join(map(str, folders))}: expected folders that --models named, with rows.")

    def rank(one: tuple[Path, dict[str, Any]]) -> tuple[bool, float]:
        return one[1]["beside"]["tasks, exact"] >= TASKS, one[1]["value"]

    file, _ = max(found, key=rank)
    return next(file.parent.glob("*/model"))


def parsed(arguments: list[str] | None) -> argparse.Namespace:
    """The arguments of the command."""
    found = parser(__doc__, file="writer-screen.json")
    found.add_argument("--variants", nargs="+", default=[BASE], help="of the config, some joined by +; base is none")
    found.add_argument("--stage", choices=sorted(STAGES), default="sft", help="which training; the others are not done")
    found.add_argument("--writing", help="a file of rows that are held back, in place of the config's")
    found.add_argument("--averaged", nargs="+", type=float, default=[], help="shares of the weights before")
    found.add_argument("--named", default="", help="said in each row, such as of which texts --chats is")
    found.add_argument("--models", type=Path, default=Path("writer-screen"), help="the folder of what is trained")
    found.add_argument("--commit", help="recorded as the commit, where the checkout has no git")
    found.add_argument("--best", nargs="+", type=Path, metavar="FOLDER", help="folders of --models")
    found.set_defaults(minutes=4.0)
    return found.parse_args(arguments)


def main(arguments: list[str] | None = None) -> None:
    """The command; see the module's docstring."""
    args = parsed(arguments)
    if args.best:
        print(best(args.best))
        return
    transformers_logging.set_verbosity_error()  # of texts that are longer than the model's window
    configs, file = dict[str, dict[str, Any]](), args.out
    for name in (BEFORE, *args.variants):
        args.variant, args.out = None if name in (BASE, BEFORE) else name, args.models / name
        configs[name] = settings(args)
        configs[name]["score"]["writing"] = args.writing or configs[name]["score"]["writing"]
    begun = configs.pop(BEFORE)
    check_writing(few(begun))
    check_packages(packages)
    rows = measured(begun, configs, args.stage, 60 * args.minutes, args.averaged, args.named)
    device, model = "cuda" if torch.cuda.is_available() else "cpu", Path(begun["model"])
    # what a stage saved is model/ in a folder of its name
    label = model.name if model.name != "model" else "/".join(model.absolute().parts[-3:-1])
    Saved(file, label, device, args.commit).add(rows)


def check_writing(config: dict[str, Any]) -> None:
    """SystemExit without held-back rows that are short enough, ValueError for files that are no chats."""
    file, longest = config["score"]["writing"], config["score"]["longest"]
    for _ in asked(config["chats"]):
        pass
    if not file or not any(row[WORDS] <= longest for _, row in asked([file])):
        raise SystemExit(
            f"--writing {file}: expected a file with rows that ask for at most {longest} words and are held back, such "
            "as recipes.long_writer.writing_set makes."
        )


if __name__ == "__main__":
    main()
