"""Fine-tune a causal language model on packed long documents, each pack shared by several processes.

    accelerate launch --config_file recipes/accelerate/sequence_parallel_2.yaml -m recipes.sequence_parallel_sft.train
    accelerate launch --config_file recipes/accelerate/sequence_parallel_2.yaml -m recipes.sequence_parallel_sft.train --smoke

See README.md beside this file.
"""  # noqa: E501

from __future__ import annotations

import argparse
import json
import os
import shutil
from pathlib import Path
from typing import Any

import torch
import yaml
from transformers import TrainingArguments, set_seed

from hf_longctx import SequenceParallel, SequenceParallelConfig, SequenceParallelTrainer
from hf_longctx.hub import load
from hf_longctx.storage.files import write_whole
from hf_longctx.training.processes import is_first
from recipes.sequence_parallel_sft.packs import PackCollator, packed, read_documents

KNOWN = {"model", "documents", "pack", "held_out", "degree", "kind", "out", "training"}


def run(config: dict[str, Any], *, resume: bool = False) -> dict[str, Any]:
    """The recipe: what `report.json` in the folder `out` has too. Every process calls it."""
    if unknown := sorted(set(config) - KNOWN):
        raise ValueError(f"{', '.join(unknown)}: not settings of this recipe, which are {', '.join(sorted(KNOWN))}.")
    if missing := sorted(KNOWN - set(config)):
        raise ValueError(f"the config lacks {', '.join(missing)}. config.yaml says what each is.")
    out = Path(config["out"])
    if not resume and any(out.glob("run/checkpoint-*")):
        raise ValueError(f"{out} holds a training. Go on with --resume, or choose another folder.")
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
    logs = trainer.state.log_history
    report = {
        "processes": args.world_size,
        "degree": trainer.get_cp_size(),
        "packs": len(packs) - held,
        "losses": [log["loss"] for log in logs if "grad_norm" in log],
        "before": next(log["eval_loss"] for log in logs if "eval_loss" in log),
        "after": trainer.evaluate()["eval_loss"],
    }
    trainer.save_model(str(out / "model.partial"))
    if trainer.is_world_process_zero():
        shutil.rmtree(out / "model", ignore_errors=True)
        (out / "model.partial").rename(out / "model")
        write_whole(out / "report.json", json.dumps(report, indent=2).encode())
    return report


def training_arguments(config: dict[str, Any], folder: Path) -> TrainingArguments:
    """Those of the config, for processes that share each pack."""
    processes = int(os.environ.get("WORLD_SIZE", 1))
    degree = processes if config["degree"] == "all" else config["degree"]
    cpu = not torch.cuda.is_available()
    given = config["training"] | ({"bf16": False} if cpu else {})
    fixed: dict[str, Any] = {"per_device_train_batch_size": 1, "per_device_eval_batch_size": 1}
    fixed |= {"remove_unused_columns": False, "eval_on_start": True, "report_to": []}
    switch = SequenceParallel(degree=degree, kind=config["kind"])
    return TrainingArguments(
        output_dir=str(folder),
        use_cpu=cpu,
        parallelism_config=SequenceParallelConfig(switch),
        **fixed,
        **given,
    )


def main(arguments: list[str] | None = None) -> None:
    """The command; see the module's docstring."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--config", type=Path, default=Path(__file__).with_name("config.yaml"))
    parser.add_argument("--resume", action="store_true", help="continue from the last checkpoint in the config's `out`")
    parser.add_argument("--smoke", action="store_true", help="a tiny model, compared with one process; about a minute")
    args = parser.parse_args(arguments)
    if args.smoke:
        from recipes.sequence_parallel_sft.smoke import main as smoke

        smoke()
        return
    report = run(yaml.safe_load(args.config.read_text(encoding="utf-8")), resume=args.resume)
    if is_first():
        print(json.dumps(report, indent=2))


if __name__ == "__main__":
    main()
