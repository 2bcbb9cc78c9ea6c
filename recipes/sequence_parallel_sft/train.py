"""Fine-tune a causal language model on packed long documents, each pack shared by several processes.

    accelerate launch --config_file recipes/accelerate/sequence_parallel_2.yaml -m recipes.sequence_parallel_sft.train
    accelerate launch --config_file recipes/accelerate/sequence_parallel_2.yaml -m recipes.sequence_parallel_sft.train --smoke

See README.md beside this file.
"""  # noqa: E501

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from transformers import TrainingArguments, set_seed

from hf_longctx import SequenceParallelTrainer
from hf_longctx.hub import load
from recipes.cards import SHARED, one_card
from recipes.config import check_keys, check_types
from recipes.resuming import check_fresh
from recipes.sequence_parallel_sft.packs import PackCollator, packed, read_documents
from recipes.shared_batches import arguments, command, keep, keep_model

TYPES = {"model": str, "documents": str, "pack": int, "held_out": int, "kind": str, "out": str, "training": dict}


def run(config: dict[str, Any], *, resume: bool = False) -> dict[str, Any]:
    """The recipe: what `report.json` in the folder `out` has too. Every process calls it."""
    check_keys(config, {*TYPES, "degree"})
    check_types(config, TYPES)
    out = Path(config["out"])
    check_fresh(out, resume)
    args = training_arguments(config, out / "run")
    set_seed(args.seed)
    model, tokenizer = load(config["model"], dtype=torch.float32, device="cpu")  # Trainer moves it
    texts = read_documents(config["documents"])
    packs = packed([tokenizer(text).input_ids for text in texts], config["pack"])
    held = config["held_out"]
    if not 0 < held < len(packs):
        raise ValueError(f"held_out: {held} of {len(packs)} packs; expected at least 1, and some left to train on.")
    trainer = SequenceParallelTrainer(
        model=model,
        args=args,
        # the fullest packs are the first
        train_dataset=packs[:-held],
        eval_dataset=packs[-held:],
        data_collator=PackCollator(),
        processing_class=tokenizer,
    )
    trainer.train(resume_from_checkpoint=resume)
    keep_model(trainer, out)
    logs = trainer.state.log_history
    report = {
        "processes": args.world_size,
        "degree": trainer.get_cp_size(),
        "packs": len(packs) - held,
        "losses": [log["loss"] for log in logs if "grad_norm" in log],
        "before": next(log["eval_loss"] for log in logs if "eval_loss" in log),
        "after": trainer.evaluate()["eval_loss"],
    }
    keep(trainer, out, report)
    return report


def training_arguments(config: dict[str, Any], folder: Path) -> TrainingArguments:
    """Those of the config, for processes that share each pack; one process takes one GPU."""
    return one_card(
        TrainingArguments(**arguments(TrainingArguments, config, folder, remove_unused_columns=False)), SHARED
    )


if __name__ == "__main__":
    command(__doc__, run, "recipes.sequence_parallel_sft")
