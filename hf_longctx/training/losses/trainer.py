"""`loss_weighting` for Trainer and what derives from it: tokens weigh the same, or documents do."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from transformers import Trainer

from ...patch import unwrap
from ..one_device import OneDeviceMixin
from .skipping import SkipEmptySteps
from .targets import Targets
from .weighted import WEIGHTS, weighing


class LossWeightingMixin(OneDeviceMixin):
    """Put before a Trainer, says what weighs the same in a step's loss, over all processes and accumulation steps.

        class WeightedSFTTrainer(LossWeightingMixin, SFTTrainer): ...

    With `SequenceParallelMixin`, put it before that. The last token of a packed document predicts nothing, whatever
    the labels say. A step without targets on any process has the loss 0 and is skipped.

    Args:
        loss_weighting: "token": each target weighs the same, so long answers weigh more than short ones; "sequence":
            each document does, by the mean over its targets. A keyword.
    """

    def __init__(self, *args: Any, loss_weighting: str = "token", **kwargs: Any) -> None:
        if loss_weighting not in ("token", "sequence"):
            raise ValueError(f"loss_weighting={loss_weighting!r}: expected 'token' or 'sequence'.")
        super().__init__(*args, **kwargs)
        self.loss_weighting = loss_weighting
        self._check_loss_settings()
        self._skip_empty_steps = SkipEmptySteps()
        self.add_callback(self._skip_empty_steps)

    def get_batch_samples(self, *args: Any, **kwargs: Any) -> tuple[list[Any], Any]:
        """As in Trainer, and notes whether the step has targets on any process."""
        self._items: Any = None
        samples, items = super().get_batch_samples(*args, **kwargs)
        self._skip_empty_steps.empty = self._items is not None and not bool((self._items > 0).any())
        return samples, items

    def _get_num_items_in_batch(self, batch_samples: list[Any], device: torch.device) -> Any:
        """The divisor of the loss: as Trainer counts targets, over all processes and accumulation steps."""
        if not batch_samples or "labels" not in batch_samples[0]:
            return super()._get_num_items_in_batch(batch_samples, device)
        counted = [Targets.of(batch).counted(self.loss_weighting) for batch in batch_samples]
        stand_ins = [{"labels": labels, "shift_labels": labels} for labels in counted]
        items = self._items = super()._get_num_items_in_batch(stand_ins, device)
        return items if items is None else torch.where(torch.as_tensor(items) > 0, items, 1)

    def compute_loss(
        self, model: Any, inputs: Any, return_outputs: bool = False, num_items_in_batch: Tensor | int | None = None
    ) -> Any:
        """The loss of a batch: its part of the step's."""
        if "labels" not in inputs:
            raise ValueError(
                f"{type(self).__name__}: loss_weighting needs labels in the batch, and it has {sorted(inputs)}. "
                f"Trainers of preferences (DPO) compute a loss of their own: leave the mixin out there."
            )
        more: dict[str, Any] = {"return_outputs": return_outputs, "num_items_in_batch": num_items_in_batch}
        if self.label_smoother is not None or num_items_in_batch is None:
            return super().compute_loss(model, inputs, **more)
        targets = Targets.of(inputs)
        inputs = {**inputs, "shift_labels": targets.next_BT}
        if self.loss_weighting == "token":
            return super().compute_loss(model, inputs, **more)
        with weighing(unwrap(self.accelerator.unwrap_model(model))):
            return super().compute_loss(model, {**inputs, WEIGHTS: targets.weights()}, **more)

    def _check_loss_settings(self) -> None:
        if self.args.world_size > 1 and not self.args.average_tokens_across_devices:
            raise ValueError(
                f"average_tokens_across_devices=False: loss_weighting={self.loss_weighting!r} counts over all "
                f"processes. Leave it out."
            )
        if self.loss_weighting == "token":
            return
        kind = getattr(self.args, "loss_type", "nll")
        own = {
            "label_smoothing_factor": self.args.label_smoothing_factor,
            "compute_loss_func": self.compute_loss_func,
            "loss_type": kind if kind != "nll" else None,
        }
        for name, value in own.items():
            if value:
                raise ValueError(f"{name}={value!r} computes a loss that loss_weighting='sequence' cannot weigh.")
        if not self.model_accepts_loss_kwargs:
            raise ValueError(
                f"{type(self.model).__name__}: its forward takes no num_items_in_batch, so its loss is a mean over "
                f"tokens of each batch. loss_weighting='sequence' needs a causal language model of transformers."
            )


class LossWeightingTrainer(LossWeightingMixin, Trainer):
    """Trainer with `loss_weighting`: see `LossWeightingMixin`."""
