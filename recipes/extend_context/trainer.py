"""Trainer with weighted targets; it stops at a loss that is not finite, and at the end of its time."""

from __future__ import annotations

from typing import Any

from transformers import Trainer

from hf_longctx.patch import unwrap
from hf_longctx.training.losses.weighted import weighing
from hf_longctx.training.memory import TrainingMemoryMixin
from recipes.clock import ClockMixin


class ExtendTrainer(ClockMixin, TrainingMemoryMixin, Trainer):
    """Batches of `Windows`, in their order."""

    def compute_loss(self, model: Any, inputs: Any, *args: Any, **kwargs: Any) -> Any:
        """As in Trainer, each target with its weight. The divisor is the number of targets of the step."""
        with weighing(unwrap(self.accelerator.unwrap_model(model))):
            return super().compute_loss(model, inputs, *args, **kwargs)
