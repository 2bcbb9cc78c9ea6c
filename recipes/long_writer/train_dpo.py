"""Preferences for right answers and asked lengths, by the trainer of recipes/long_dpo.

    python -m recipes.long_writer.train_dpo --model long-writer/sft/model --minutes 2

See README.md beside this file.
"""

from __future__ import annotations

import json
import time
from pathlib import Path
from typing import Any

import torch

from hf_longctx import SequenceParallel, SequenceParallelConfig
from hf_longctx.evaluation.results import write_results
from hf_longctx.hub.resolve import load_model, load_tokenizer
from hf_longctx.storage.files import write_json_lines
from hf_longctx.upstream.installing import check_packages
from recipes.cards import one_card
from recipes.clock import Clock
from recipes.long_dpo.pairs import read_pairs
from recipes.long_dpo.trainer import dpo_trainer, needed
from recipes.long_writer.budget import NotFinishedError
from recipes.long_writer.command import command
from recipes.long_writer.data import Fitting
from recipes.long_writer.pairs import by_length, verified
from recipes.long_writer.stage import arguments, keep, run
from recipes.long_writer.trainers import TRAINS
from recipes.resuming import check_fresh

SAMPLES = 0.5  # of the seconds, at most: the part in which answers are sampled


def made_pairs(
    config: dict[str, Any],
    start: str,
    tokenizer: Any,
    pairs: Fitting,
    out: Path,
    *,
    resume: bool,
    stop: float | None = None,
    enough: float | None = None,
) -> dict[str, Any]:
    """Fill `pairs`, and say what was sampled. They are kept in files: a GPU would not sample the same ones again."""
    told, rows = out / "sampled.json", out / "pairs.jsonl"
    if resume and told.exists():
        kept = json.loads(told.read_text(encoding="utf-8"))
        pairs.rows, pairs.too_long = read_pairs(rows), kept["too long"]
        return dict(kept["sampled"])
    verified(tokenizer, config, pairs)
    sampled: dict[str, Any] = {}
    if config["dpo"]["prompts"]:
        try:
            model = load_model(start, dtype=config["save_dtype"])
            sampled = by_length(model, tokenizer, config, pairs, until=stop, enough=enough)
        except TimeoutError:
            raise NotFinishedError("the answers that dpo samples", Path(config["out"])) from None
    write_json_lines(rows, pairs.rows)
    write_results(told, {"sampled": sampled, "too long": pairs.too_long})
    return sampled


def train(
    config: dict[str, Any],
    *,
    model: str | None = None,
    seconds: float | None = None,
    stop: float | None = None,
    resume: bool = False,
) -> dict[str, Any]:
    """Train `model`, or the config's, and save it in the folder dpo of `out`; the report."""
    own, out = config["dpo"], Path(config["out"]) / "dpo"
    check_packages(TRAINS)
    arguments_of, begun = needed().config, time.monotonic()
    check_fresh(out, resume)
    start = model or config["model"]
    tokenizer = load_tokenizer(start)
    pairs, enough = Fitting(config["context"]), None if seconds is None else begun + SAMPLES * seconds
    found = made_pairs(config, start, tokenizer, pairs, out, resume=resume, stop=stop, enough=enough)
    found |= pairs.report("pairs")

    def make(clock: Clock) -> Any:
        args = arguments_of(
            **arguments(own["training"], out, own["steps"], own["pairs_per_step"], own["pairs"], config["seed"]),
            max_length=None,
            parallelism_config=SequenceParallelConfig(SequenceParallel(degree=1)),
        )
        # both alike: what they are rounded to would count as a preference, and long answers add it up
        trained, reference = (load_model(start, dtype=torch.float32, device="cpu") for _ in range(2))
        return dpo_trainer(trained, reference, tokenizer, pairs.rows, one_card(args), clock=clock)

    report = run(make, "dpo", config, str(start), found, seconds=seconds, begun=begun, resume=resume, stop=stop)
    return keep(out, report | {"data": found})


train.packages = packages = TRAINS  # of the stage, and of the command

if __name__ == "__main__":
    command(__doc__, train)
