"""The ways to sample answers for reinforcement, side by side: seconds of a step.

    python -m recipes.long_writer.generation --model long-writer/sft/model --chats writing.jsonl --out generation.json

Each way takes the same first steps of `train_grpo`, in a folder that is removed. The first step is not counted: kernels
are compiled in it, and graphs recorded. One way that fails costs no other its row.
"""

from __future__ import annotations

import logging
import shutil
from collections.abc import Iterator, Sequence
from pathlib import Path
from statistics import median
from typing import Any

import torch

from hf_longctx.evaluation.rows import row
from recipes.benchmarks.saving import Saved
from recipes.cards import free
from recipes.long_writer import train_grpo
from recipes.long_writer.command import parser, settings
from recipes.long_writer.settings import GENERATION
from recipes.long_writer.trainers import TRAINS

logger = logging.getLogger("hf_longctx")
packages = TRAINS
NEVER = 10**9  # steps


def measured(config: dict[str, Any], ways: Sequence[str], steps: int) -> Iterator[dict[str, Any]]:
    """A row for each way.

    Args:
        config: The recipe's settings.
        ways: Of `grpo: generation`.
        steps: Of each; those after the first are counted.
    """
    own = config["grpo"]
    asked, answers = own["prompts_per_step"], own["training"]["num_generations"]
    most = own["training"]["max_completion_length"]
    size = f"{asked} prompts with {answers} answers of at most {most:,} tokens"
    for way in ways:
        what = f"a step of reinforcement, {size}: answers sampled by {way}"
        free()  # what the way before has left, also if it failed
        try:
            logs = steps_of(config, way, steps)
        except Exception as error:
            logger.exception("%s", way)
            yield row(what, None, "s", why=f"{type(error).__name__}: {error}".splitlines()[0])
            continue
        seconds = [log["step_time"] for log in logs]
        longest = median(log["completions/max_length"] for log in logs[1:])
        beside = {
            "first step, s": seconds[0],
            "tokens of the longest answer": longest,
            "ms of a token of the longest answer, training included": 1e3 * median(seconds[1:]) / longest,
        }
        yield row(what, median(seconds[1:]), "s", beside=beside, detail={"seconds": seconds})


def steps_of(config: dict[str, Any], way: str, steps: int) -> list[dict[str, Any]]:
    """What the trainer logs of the first steps."""
    out = Path(config["out"]) / f"generation-{way}"
    shutil.rmtree(out, ignore_errors=True)
    # whole answers, of which some ways can cut none
    changed = {"generation": way, "steps": steps, "loop_tokens": None}
    training = config["grpo"]["training"] | {"save_steps": NEVER, "logging_steps": 1}
    try:
        report = train_grpo.train(config | {"out": str(out), "grpo": config["grpo"] | changed | {"training": training}})
    finally:
        shutil.rmtree(out, ignore_errors=True)
    logs: list[dict[str, Any]] = report["logs"]
    return logs


def main() -> None:
    """The command."""
    found = parser(__doc__, file="generation.json")
    found.add_argument("--ways", nargs="+", choices=GENERATION, default=list(GENERATION))
    found.add_argument("--steps", type=int, default=3, help="of each way, of which the first is not counted")
    found.add_argument("--commit", help="recorded as the commit, where the checkout has no git")
    args = found.parse_args()
    if args.steps < 2:
        found.error(f"--steps {args.steps}: expected at least 2, since the first one is not counted.")
    file, args.out = args.out, args.out.parent
    config = settings(args)
    device = "cuda" if torch.cuda.is_available() else "cpu"
    Saved(file, Path(config["model"]).name, device, args.commit, heading="seconds").add(
        measured(config, args.ways, args.steps)
    )


if __name__ == "__main__":
    main()
