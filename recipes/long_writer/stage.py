"""What the three trainings have in common: a folder, a clock, an interruption, a saved model."""

from __future__ import annotations

import logging
import math
import time
from collections.abc import Callable, Mapping
from importlib import metadata
from pathlib import Path
from typing import Any

import torch
from transformers import set_seed

from hf_longctx import undo
from hf_longctx.evaluation.results import environment, write_results
from hf_longctx.hub import save
from hf_longctx.patch import applied
from hf_longctx.training.checkpoints import last_whole
from recipes.clock import Clock
from recipes.long_writer.budget import NotFinishedError
from recipes.long_writer.settings import telling
from recipes.resuming import fingerprints, keep_settings

logger = logging.getLogger("hf_longctx")
SAVING = 15.0  # seconds before the end of a call at which a training is interrupted


def arguments(given: Mapping[str, Any], out: Path, steps: int, rows: int, forward: int, seed: int) -> dict[str, Any]:
    """The arguments of a TRL config.

    Args:
        given: The config's own.
        out: The folder of the stage.
        steps: Of the optimizer.
        rows: Of a step.
        forward: Rows of a forward.
        seed: Of the training.
    """
    cpu = not torch.cuda.is_available()
    return {
        "output_dir": str(out / "run"),
        "use_cpu": cpu,
        "max_steps": steps,
        "per_device_train_batch_size": forward,
        "gradient_accumulation_steps": rows // forward,
        "report_to": [],
        "seed": seed,
        **given,
        **({"bf16": False} if cpu else {}),
    }


def run(
    make: Callable[[Clock], Any],
    stage: str,
    config: Mapping[str, Any],
    model: str,
    data: Mapping[str, Any],
    *,
    seconds: float | None,
    begun: float,
    resume: bool,
    stop: float | None = None,
) -> dict[str, Any]:
    """Train, save the model in the folder model of the stage's, and say what happened.

    Args:
        make: The trainer, given its clock.
        stage: Its name in the config, and its folder in the config's `out`.
        config: The recipe's settings.
        model: What it begins with.
        data: What it trains on, in figures. With settings and model it decides the weights.
        seconds: After `begun` it ends; None: after all of its steps.
        begun: `time.monotonic()` when the stage began, its data included.
        resume: Go on from the last checkpoint that was saved to its end.
        stop: `time.monotonic()` at which the call has to be done: some seconds before, it is interrupted.

    Raises:
        NotFinishedError: It was.
        ValueError: The folder holds a training, or one that began with other settings.
        FloatingPointError: A loss is not finite. The checkpoints from before it stay.
        SystemExit: Ctrl-C.
    """
    out = Path(config["out"]) / stage
    keep_settings(out, fingerprints(decides(config, stage, model) | {"data": data}), resume=resume)
    set_seed(config["seed"])
    if torch.cuda.is_available():
        torch.cuda.reset_peak_memory_stats()  # those of the stages and scores before it
    left = None if seconds is None else seconds - (time.monotonic() - begun)
    if left is not None and left <= 0:
        raise ValueError(f"--minutes: the data of {out} took longer than its {seconds:.0f} seconds. Give more.")
    if stop is not None and time.monotonic() > stop - SAVING:
        raise NotFinishedError(f"the data of {stage}", Path(config["out"]))
    clock = Clock(config[stage]["steps"], left, out / "run/seconds.json", stop=None if stop is None else stop - SAVING)
    trainer = make(clock)
    model = trainer.accelerator.unwrap_model(trainer.model)
    model.config.use_cache = False
    try:
        trainer.train(resume_from_checkpoint=last_whole(out / "run") if resume else None)
    except KeyboardInterrupt:
        raise SystemExit(f"interrupted after {trainer.state.global_step} steps; --resume goes on from {out}.") from None
    if clock.interrupted:
        raise NotFinishedError(f"{stage}, after {trainer.state.global_step} steps", Path(config["out"]))
    report = {"steps": trainer.state.global_step, "seconds": clock.passed, "logs": logged(trainer)}
    if torch.cuda.is_available():
        report["peak memory, GiB"] = torch.cuda.max_memory_allocated() / 2**30
    model.config.use_cache = True
    if applied(model):
        undo(model)
    save(model.to("cpu", getattr(torch, config["save_dtype"])), trainer.processing_class, out / "model", overwrite=True)
    return report


def decides(config: Mapping[str, Any], stage: str, model: str) -> dict[str, Any]:
    """What decides the weights of a stage, beside its data."""
    told = telling(config)
    return {key: told[key] for key in ("context", "seed", "tasks", stage)} | {"model": model}


def keep(out: Path, report: Mapping[str, Any]) -> dict[str, Any]:
    """The report with commit, hardware and versions, as it is written to `out`/report.json."""
    versions = environment()
    versions["versions"]["trl"] = metadata.version("trl")
    found = dict(report) | versions
    write_results(out / "report.json", found)
    return found


def logged(trainer: Any) -> list[dict[str, Any]]:
    """What the trainer logged of each step, without what is not a finite number."""
    logs = [log for log in trainer.state.log_history if "grad_norm" in log]
    return [{key: value for key, value in log.items() if value is not None and math.isfinite(value)} for log in logs]
