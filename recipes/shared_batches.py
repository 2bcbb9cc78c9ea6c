"""What recipes share whose processes share each batch: the command, arguments, what is kept, and the smoke form."""

from __future__ import annotations

import argparse
import importlib
import json
import os
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from accelerate import PartialState
from accelerate.utils import broadcast_object_list

from hf_longctx import SequenceParallel, SequenceParallelConfig
from hf_longctx.storage.files import write_whole
from hf_longctx.training.processes import is_first
from recipes.config import check_training, read_yaml

LAUNCHED = ("RANK", "WORLD_SIZE", "LOCAL_", "GROUP_", "MASTER_", "ROLE_", "TORCHELASTIC_", "ACCELERATE_", "FSDP_")


def command(description: str | None, run: Callable[..., dict[str, Any]], recipe: str) -> None:
    """A recipe's command line.

    Args:
        description: Above its options.
        run: Takes the config and `resume`, and returns the report. Every process calls it.
        recipe: The package, with config.yaml beside it and `main` in its module smoke.
    """
    parser = argparse.ArgumentParser(description=description, formatter_class=argparse.RawDescriptionHelpFormatter)
    default = Path(__file__).parents[1].joinpath(*recipe.split("."), "config.yaml")
    parser.add_argument("--config", type=Path, default=default)
    parser.add_argument("--resume", action="store_true", help="continue from the last checkpoint in the config's `out`")
    parser.add_argument("--smoke", action="store_true", help="a tiny model, compared with one process; about a minute")
    args = parser.parse_args()
    if args.smoke:
        importlib.import_module(f"{recipe}.smoke").main()
        return
    report = run(read_yaml(args.config), resume=args.resume)
    if is_first():
        print(json.dumps(report, indent=2))


def arguments(of: type, config: dict[str, Any], folder: Path, **fixed: Any) -> dict[str, Any]:
    """Arguments of TrainingArguments and what derives from it, for processes that share each batch.

    Args:
        of: That class.
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
    check_training(config["training"], of)
    return config["training"] | ({"bf16": False} if cpu else {}) | fixed


def keep_model(trainer: Any, out: Path) -> None:
    """The model, whole or not at all, before it is measured. Every process calls it."""
    trainer.save_model(str(out / "model.partial"))
    if trainer.is_world_process_zero():
        shutil.rmtree(out / "model", ignore_errors=True)
        (out / "model.partial").rename(out / "model")


def keep(trainer: Any, out: Path, report: dict[str, Any]) -> None:
    """The report, whole or not at all. Every process calls it."""
    if trainer.is_world_process_zero():
        write_whole(out / "report.json", json.dumps(report, indent=2).encode())


def smoke(
    prepare: Callable[[Path], None],
    run: Callable[[dict[str, Any]], dict[str, Any]],
    check: Callable[[dict[str, Any], Path], None],
) -> None:
    """The recipe on all processes in a temporary folder, which one of them prepares, and whose report it checks."""
    state = PartialState(cpu=not torch.cuda.is_available())
    with tempfile.TemporaryDirectory() as own:
        folder = Path(broadcast_object_list([own])[0])  # that of the first process
        if state.is_main_process:
            prepare(folder)
        state.wait_for_everyone()
        report = run(read_yaml(folder / "config.yaml"))
        if state.is_main_process:
            check(report, folder)
        state.wait_for_everyone()


def stock(module: str, folder: Path) -> dict[str, Any]:
    """What a module finds in one process, without what a launcher has told this one, and writes to stock.json."""
    environment = {name: value for name, value in os.environ.items() if not name.startswith(LAUNCHED)}
    subprocess.run([sys.executable, "-m", module, str(folder)], env=environment, check=True)
    found: dict[str, Any] = json.loads((folder / "stock.json").read_text(encoding="utf-8"))
    return found
