"""What recipes share whose processes share each batch: arguments, what a training leaves, and one process beside it."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import torch

from hf_longctx import SequenceParallel, SequenceParallelConfig
from hf_longctx.storage.files import write_whole

LAUNCHED = ("RANK", "WORLD_SIZE", "LOCAL_", "GROUP_", "MASTER_", "ROLE_", "TORCHELASTIC_", "ACCELERATE_", "FSDP_")


def arguments(config: dict[str, Any], folder: Path, **fixed: Any) -> dict[str, Any]:
    """Arguments of TrainingArguments and what derives from it, for processes that share each batch.

    Args:
        config: A recipe's, with `degree`, `kind` and `training`.
        folder: Of checkpoints.
        **fixed: What the recipe sets itself, and `training` must not.
    """
    processes = int(os.environ.get("WORLD_SIZE", 1))
    degree = processes if config["degree"] == "all" else config["degree"]
    cpu = not torch.cuda.is_available()
    fixed |= {"output_dir": str(folder), "use_cpu": cpu, "eval_on_start": True, "report_to": []}
    fixed |= {"per_device_train_batch_size": 1, "per_device_eval_batch_size": 1}
    fixed["parallelism_config"] = SequenceParallelConfig(SequenceParallel(degree=degree, kind=config["kind"]))
    if clash := sorted(fixed.keys() & config["training"].keys()):
        raise ValueError(f"training: {', '.join(clash)}: the recipe sets these itself. Leave them out of the config.")
    return config["training"] | ({"bf16": False} if cpu else {}) | fixed


def keep(trainer: Any, out: Path, report: dict[str, Any]) -> None:
    """The model and the report, each whole or not at all. Every process calls it."""
    trainer.save_model(str(out / "model.partial"))
    if trainer.is_world_process_zero():
        shutil.rmtree(out / "model", ignore_errors=True)
        (out / "model.partial").rename(out / "model")
        write_whole(out / "report.json", json.dumps(report, indent=2).encode())


def alone(module: str, *words: str) -> None:
    """Run a module in one process, without what a launcher has told this one."""
    environment = {name: value for name, value in os.environ.items() if not name.startswith(LAUNCHED)}
    subprocess.run([sys.executable, "-m", module, *words], env=environment, check=True)
