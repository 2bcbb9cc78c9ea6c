"""Supervised fine-tuning on whole answers, short ones first, by TRL's SFTTrainer.

    python -m recipes.long_writer.train_sft --config recipes/long_writer/config.yaml --minutes 5

See README.md beside this file.
"""

from __future__ import annotations

import time
from pathlib import Path
from typing import Any

import torch

from hf_longctx import SequenceParallel, SequenceParallelConfig
from hf_longctx.hub import load
from recipes.cards import one_card
from recipes.clock import Clock
from recipes.long_writer.command import command
from recipes.long_writer.curriculum import COLUMNS, ShortFirst, packs_by_length
from recipes.long_writer.data import sft_documents
from recipes.long_writer.stage import arguments, keep, run
from recipes.long_writer.trainers import TRAINS, trainers
from recipes.resuming import check_fresh


def train(
    config: dict[str, Any],
    *,
    model: str | None = None,
    seconds: float | None = None,
    stop: float | None = None,
    resume: bool = False,
) -> dict[str, Any]:
    """Train `model`, or the config's, and save it in the folder sft of `out`; the report."""
    own, out = config["sft"], Path(config["out"]) / "sft"
    (arguments_of, trainer), begun = trainers().sft, time.monotonic()
    check_fresh(out, resume)
    start = model or config["model"]
    loaded, tokenizer = load(start, dtype=torch.float32, device="cpu")  # Trainer moves it
    documents = sft_documents(tokenizer, config)
    found = documents.report("answers")
    packs = packs_by_length(documents.rows, config["context"])
    found |= {"packs": len(packs), "tokens": sum(len(row["input_ids"]) for row in packs)}
    steps, rows = own["steps"], own["packs_per_step"]

    def make(clock: Clock) -> Any:
        draw = ShortFirst(
            len(packs),
            steps * rows,
            lambda number: clock.seen(number // rows),
            **own["curriculum"],
            seed=config["seed"],
        )
        args = arguments_of(
            **arguments(own["training"], out, steps, rows, own["packs"], config["seed"]),
            # the packs are made already, as packing_strategy="bfd_split" would make them
            padding_free=True,
            max_length=None,
            dataset_kwargs={"skip_prepare_dataset": True},
            # the documents of a pack attend within themselves, without a mask of all pairs
            parallelism_config=SequenceParallelConfig(SequenceParallel(degree=1)),
        )
        return trainer(
            model=loaded,
            args=one_card(args),
            train_dataset=trainers().dataset.from_dict({name: [row[name] for row in packs] for name in COLUMNS}),
            processing_class=tokenizer,
            clock=clock,
            sampler=draw,
            loss_weighting=own["loss_weighting"],
        )

    report = run(make, "sft", config, str(start), found, seconds=seconds, begun=begun, resume=resume, stop=stop)
    return keep(out, report | {"data": found})


train.packages = packages = TRAINS  # of the stage, and of the command

if __name__ == "__main__":
    command(__doc__, train)
