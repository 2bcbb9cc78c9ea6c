"""A piece of the chain in a process of its own, so that several cards, or processes of one card, share a chain.

    python -m recipes.long_writer.piece --train sft --minutes 8 --variant whole --chats C.jsonl --writing W.jsonl
    python -m recipes.long_writer.piece --score sft --minutes 4 --variant whole --chats C.jsonl --writing W.jsonl
    python -m recipes.long_writer.chain --resume --minutes 1 --variant whole --chats C.jsonl --writing W.jsonl

`--train` takes sft, dpo or grpo, the latter two once the first is trained; `--score` one of these once it is
trained, or untrained, which is scored with its end token banned too. The chain, resumed with the same arguments, skips
what pieces have done, and writes the report and the cards; its minutes are for scores that are still missing.
"""

from __future__ import annotations

import time
from functools import partial
from pathlib import Path
from typing import Any

from transformers.utils import logging as transformers_logging

from hf_longctx.upstream.installing import check_packages
from recipes.long_writer.chain import STAGES, begins_with, needed, scored
from recipes.long_writer.command import parser, settings
from recipes.long_writer.figures import BANNED, UNTRAINED
from recipes.long_writer.progress import Progress, begun
from recipes.long_writer.score import NEEDS
from recipes.long_writer.trainers import TRAINS

packages = *NEEDS, *TRAINS  # of this command


def train(config: dict[str, Any], name: str, seconds: float | None = None) -> dict[str, Any]:
    """Train a stage, unless it is complete; its report.

    Raises:
        ValueError: The model that it begins with is not trained yet, or another training is in its folder.
    """
    check_packages(needed([name]))
    before, start = begins_with(config, name, [stage for stage, part in config["chain"].items() if part])
    if before != UNTRAINED:
        _check_trained(config, before, f"--train {name} begins with it")
    progress = Progress(config, [name], resume=begun(Path(config["out"])))
    return progress.stage(name, start, partial(STAGES[name], config, model=start, seconds=seconds))


def score(config: dict[str, Any], name: str, seconds: float | None = None) -> list[str]:
    """Score a model, unless that is done; what was not measured, since the time was over.

    Raises:
        ValueError: It is not trained yet.
    """
    check_packages(NEEDS)
    out = Path(config["out"])
    if name != UNTRAINED:
        _check_trained(config, name, f"--score {name} reads it")
    progress = Progress(config, [], resume=begun(out))
    model = config["model"] if name == UNTRAINED else str(out / name / "model")
    ends = None if seconds is None else time.monotonic() + seconds
    texts, left = out / f"texts/{name}.jsonl", list[str]()
    for line, banned in ((name, False), (BANNED, True)) if name == UNTRAINED else ((name, False),):
        how: dict[str, Any] = {"until": ends, "last": ends, "banned": banned, "texts": None if banned else texts}
        found = scored(model, config, sizes=progress.sizes(line), **how)
        left += [f"{line}: {size}" for size in found["not measured"]]
    return left


def _check_trained(config: dict[str, Any], name: str, why: str) -> None:
    folder = Path(config["out"]) / name
    if not (folder / "report.json").exists():  # written when the model is saved
        raise ValueError(f"{folder} holds no trained model, and {why}. Train it first: --train {name}.")


def main() -> None:
    """The command; see the module's docstring."""
    found = parser(__doc__)
    found.add_argument("--writing", help="a file of rows that are held back, in place of the config's")
    what = found.add_mutually_exclusive_group(required=True)
    what.add_argument("--train", choices=STAGES, help="the stage that is trained")
    what.add_argument("--score", choices=(UNTRAINED, *STAGES), help="the model that is scored")
    args = found.parse_args()
    transformers_logging.set_verbosity_error()  # of texts that are longer than the model's window
    config = settings(args)
    config["score"]["writing"] = args.writing or config["score"]["writing"]
    seconds = None if args.minutes is None else 60 * args.minutes
    try:
        if args.train:
            report = train(config, args.train, seconds)
            print(f"{args.train}: {report['steps']} steps")
            return
        left = score(config, args.score, seconds)
    except ValueError as error:
        raise SystemExit(str(error)) from None
    print(f"{args.score}: scored" + (f"; not measured: {', '.join(left)}" if left else ""))


if __name__ == "__main__":
    main()
