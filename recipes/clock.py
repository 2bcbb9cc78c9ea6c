"""Trainings that end by a clock, their learning rate with them, and before a loss that is not finite."""

from __future__ import annotations

import argparse
import json
import math
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch.optim.lr_scheduler import LambdaLR
from transformers import TrainerCallback

from hf_longctx.storage.files import write_whole

if TYPE_CHECKING:
    from transformers import Trainer as Base
else:
    Base = object

LOWEST = 0.1  # of the learning rate, at the end


def sooner(*ends: float | None) -> float | None:
    """The first of some times; None is without end."""
    return min((end for end in ends if end is not None), default=None)


class Clock(TrainerCallback):
    """Says which part of the training is done: of the steps or, if that is more, of the time.

    Args:
        steps: Of the whole training.
        seconds: After which it ends; None: the steps alone count.
        file: Keeps the seconds of an interrupted run.
        stop: `time.monotonic()` at which it is interrupted, with a checkpoint to go on from.
    """

    def __init__(self, steps: int, seconds: float | None, file: Path, *, stop: float | None = None) -> None:
        self.steps, self.seconds, self.file, self.stop = steps, seconds, file, stop
        self.interrupted = False
        self._seen: list[float] = []
        self._seen_file = file.with_name(f"{file.stem}.shares.json")
        self._begun = time.monotonic()

    @property
    def passed(self) -> float:
        """Seconds of training."""
        return time.monotonic() - self._begun

    def share(self, step: int) -> float:
        """0 to 1."""
        timed = self.passed / self.seconds if self.seconds is not None else 0.0
        return min(max(step / self.steps, timed), 1.0)

    def seen(self, step: int) -> float:
        """The share when the data of this step were first asked for: a resumed training has the same data again."""
        while len(self._seen) <= step:
            self._seen.append(self.share(len(self._seen)))
        return self._seen[step]

    def on_train_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """Begin, or go on where an interrupted run stood."""
        before = json.loads(self.file.read_text(encoding="utf-8")) if state.global_step and self.file.exists() else 0.0
        self._begun = time.monotonic() - before
        if state.global_step and self._seen_file.exists():
            self._seen = json.loads(self._seen_file.read_text(encoding="utf-8"))

    def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """Ask for the end when the time is over."""
        over = self.share(state.global_step) >= 1
        self.interrupted = not over and self.stop is not None and time.monotonic() >= self.stop
        if over or self.interrupted:
            control.should_training_stop = control.should_save = True

    def on_save(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """Keep the time with the checkpoint."""
        write_whole(self.file, json.dumps(self.passed).encode())
        if self._seen:
            write_whole(self._seen_file, json.dumps(self._seen).encode())


class ClockMixin(Base):
    """Put before a Trainer, ends its training and its learning rate by a clock, or before a loss that is not finite.

    Args:
        clock: The schedule of the learning rate goes by it.
    """

    def __init__(self, *args: Any, clock: Clock, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.clock = clock
        self.add_callback(clock)

    def training_step(self, *args: Any, **kwargs: Any) -> Any:
        """As in Trainer; FloatingPointError before a step that would spoil the weights."""
        loss = super().training_step(*args, **kwargs)
        if not bool(torch.isfinite(loss)):
            raise FloatingPointError(
                f"the loss of step {self.state.global_step + 1} is {loss.item()}. The checkpoints in "
                f"{self.args.output_dir} are from before it; begin again with a lower learning_rate."
            )
        return loss

    def create_scheduler(self, num_training_steps: int, optimizer: Any = None) -> LambdaLR:
        """Warm-up, then linearly down to a tenth."""
        warmup = self.args.warmup_steps

        def rate(step: int) -> float:
            start = warmup / self.clock.steps
            down = max(self.clock.share(step) - start, 0) / max(1 - start, 1e-9)
            return min((step + 1) / max(warmup, 1), 1.0) * (1 - (1 - LOWEST) * down)

        self.lr_scheduler = LambdaLR(self.optimizer if optimizer is None else optimizer, rate)
        return self.lr_scheduler


def minutes(text: str) -> float:
    """For argparse: how long a run may take."""
    found = float(text)
    if not 0 < found < math.inf:
        raise argparse.ArgumentTypeError(f"{text}: expected a number above 0")
    return found
