"""Sequence parallelism for Trainer and what derives from it, such as TRL's trainers."""

from __future__ import annotations

import os
from contextlib import nullcontext
from typing import Any

import torch
from torch import Tensor
from transformers import Trainer

from ..parallel.model.forward import STATE, with_logits
from ..patch import unwrap
from .accelerate import SequenceParallelConfig
from .checkpoints import last_whole
from .once import gather_once
from .preflight import PreflightMixin


class SequenceParallelMixin(PreflightMixin):
    """Put before a Trainer, makes the processes of a group share each batch.

        class SequenceParallelSFTTrainer(SequenceParallelMixin, SFTTrainer): ...

        args = SFTConfig(parallelism_config=SequenceParallelConfig(SequenceParallel(degree=2)), packing=True)

    Batch sizes, accumulation, losses, gradient norms, metrics and predictions are those of as many processes as there
    are groups. Everything else of the Trainer stays as it is.
    """

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        config = self.accelerator.parallelism_config
        if not isinstance(config, SequenceParallelConfig):
            raise ValueError(
                f"{type(self).__name__}: expected parallelism_config=SequenceParallelConfig(SequenceParallel(degree=2))"
                f" in its arguments, and it is {type(config).__name__}."
            )
        self._check_settings(config)
        # now: TRL's trainers have put a forward of their own on the model
        config.switch.apply(self.model)
        reference = getattr(self, "ref_model", None)
        if reference is not None:
            config.switch.apply(self.accelerator.unwrap_model(reference))
        if config.cp_size > 1:
            gather_once(self.accelerator, config.cp_size)
            self.gather_function = self.accelerator.gather_for_metrics

    def train(self, resume_from_checkpoint: str | bool | None = None, *args: Any, **kwargs: Any) -> Any:
        """As in Trainer; with `resume_from_checkpoint=True` from the last checkpoint that was saved to its end."""
        if resume_from_checkpoint is True:
            resume_from_checkpoint = last_whole(self.args.output_dir)
        if self.accelerator.num_processes > 1 and self.model_wrapped is self.model and not self.is_fsdp_enabled:
            # accelerate takes a model that was evaluated for one that DDP wraps already (patches/accelerate/0030)
            self.model._is_accelerate_prepared = False
        return super().train(resume_from_checkpoint, *args, **kwargs)

    def _get_num_items_in_batch(self, batch_samples: list[Any], device: torch.device) -> Any:
        """As in Trainer, whose older releases divide by the processes of a group in whole numbers."""
        degree = self.get_cp_size()
        # where all counts of a group are gathered it comes out even
        if self.args.average_tokens_across_devices or degree == 1:
            return super()._get_num_items_in_batch(batch_samples, device)
        items = super()._get_num_items_in_batch(batch_samples * degree, device)
        return items if items is None else items / degree

    def compute_loss(
        self, model: Any, inputs: Any, return_outputs: bool = False, num_items_in_batch: Tensor | int | None = None
    ) -> Any:
        """The loss of the group's batch; Trainer multiplies one that it has divided by all tokens by all processes."""
        found = super().compute_loss(
            model, inputs, return_outputs=return_outputs, num_items_in_batch=num_items_in_batch
        )
        if num_items_in_batch is None:
            return found
        # it counts every process of a group as one with tokens of its own
        degree = self.get_cp_size()
        return (found[0] / degree, found[1]) if return_outputs else found / degree

    def prediction_step(
        self, model: Any, inputs: Any, prediction_loss_only: bool, ignore_keys: list[str] | None = None
    ) -> Any:
        """As in Trainer; where predictions are asked for, the model answers with its logits."""
        root = unwrap(self.accelerator.unwrap_model(model))
        with nullcontext() if prediction_loss_only or STATE not in vars(root) else with_logits(root):
            return super().prediction_step(model, inputs, prediction_loss_only, ignore_keys=ignore_keys)

    def _check_settings(self, config: SequenceParallelConfig) -> None:
        if self.args.label_smoothing_factor and not config.switch.gather_logits:
            raise ValueError(
                f"label_smoothing_factor={self.args.label_smoothing_factor}: it is computed from logits of the whole "
                f"batch. Set SequenceParallel(gather_logits=True), which takes their memory, or leave it out."
            )
        if self.args.eval_use_gather_object:
            raise ValueError("eval_use_gather_object=True: expected predictions that are tensors. Leave it out.")
        # by an argument, or by the launcher's file
        asked = getattr(self.args, "fsdp", None) or os.environ.get("ACCELERATE_USE_FSDP") == "true"
        if asked and not self.accelerator.is_fsdp2:
            raise ValueError(
                f"fsdp={asked!r}: accelerate runs {self.accelerator.distributed_type.value} here, not FSDP2 (it needs "
                f"GPUs, and fsdp_config={{'version': 2}})."
            )


class SequenceParallelTrainer(SequenceParallelMixin, Trainer):
    """Trainer whose processes share each batch in groups: see `SequenceParallelMixin`."""
