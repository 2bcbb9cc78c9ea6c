"""The memory ladder for Trainer and what derives from it."""

from __future__ import annotations

from typing import Any

from ..preflight import PreflightMixin
from .chunked_loss import answering_with_logits
from .settings import TrainingMemory


class TrainingMemoryMixin(PreflightMixin):
    """Put before a Trainer, applies `TrainingMemory` to its model.

        class FarTrainer(SequenceParallelMixin, TrainingMemoryMixin, Trainer): ...

        FarTrainer(model=model, memory=TrainingMemory(remat="attention"), args=args, ...)

    A stock Trainer trains and evaluates as well with a model to which `TrainingMemory` was applied before. Where
    predictions are asked for (`predict`, `compute_metrics`), this one has the model answer with logits.
    A batch that will not fit is refused before its step (`preflight=False` leaves that out).
    """

    def __init__(self, *args: Any, memory: TrainingMemory | None = None, **kwargs: Any) -> None:
        if not isinstance(memory, TrainingMemory | None):
            raise ValueError(f"memory={memory!r}: expected hf_longctx.TrainingMemory(...), or None for its defaults.")
        super().__init__(*args, **kwargs)
        (TrainingMemory() if memory is None else memory).apply(self.model)

    def prediction_step(
        self, model: Any, inputs: Any, prediction_loss_only: bool, ignore_keys: list[str] | None = None
    ) -> Any:
        """As in Trainer; where predictions are asked for, the model answers with its logits."""
        if prediction_loss_only:
            return super().prediction_step(model, inputs, prediction_loss_only, ignore_keys=ignore_keys)
        with answering_with_logits(self.accelerator.unwrap_model(model)):
            return super().prediction_step(model, inputs, prediction_loss_only, ignore_keys=ignore_keys)
