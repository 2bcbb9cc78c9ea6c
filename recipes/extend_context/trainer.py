"""Trainer with weighted targets; it stops at a loss that is not finite, and at the end of its time."""

from __future__ import annotations

from contextlib import nullcontext
from typing import Any

from transformers import Trainer

from hf_longctx.patch import unwrap
from hf_longctx.training.losses.weighted import weighing
from hf_longctx.training.memory import TrainingMemoryMixin
from recipes.clock import ClockMixin

from .distil import Teacher


class ExtendTrainer(ClockMixin, TrainingMemoryMixin, Trainer):
    """Batches of `Windows`, in their order.

    Args:
        teacher: Of the batches that are distilled.
    """

    def __init__(self, *args: Any, teacher: Teacher | None = None, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.teacher = teacher

    def compute_loss(self, model: Any, inputs: Any, *args: Any, **kwargs: Any) -> Any:
        """As in Trainer, each target with its weight. The divisor is the number of targets of the step."""
        inputs = dict(inputs)
        distilled = inputs.pop("distilled", False)
        student = unwrap(self.accelerator.unwrap_model(model))
        teaching = self.teacher.teaching(student, inputs["input_ids"]) if distilled and self.teacher else nullcontext()
        with teaching, weighing(student):
            return super().compute_loss(model, inputs, *args, **kwargs)
