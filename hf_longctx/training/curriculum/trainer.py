"""A batch sampler of one's own for Trainer and what derives from it."""

from __future__ import annotations

from functools import partial
from typing import Any

from torch.utils.data import DataLoader
from transformers import Trainer, TrainerCallback
from transformers.trainer_utils import seed_worker

from ..one_device import OneDeviceMixin
from .sampler import BucketSampler


class BatchSamplerMixin(OneDeviceMixin):
    """Put before a Trainer, makes it train on the batches of a `BucketSampler`.

    Its data loader goes on as before: accelerate deals the batches to processes, or to groups of them, and training
    resumed in the middle of an epoch goes on in the same order. `per_device_train_batch_size` says nothing.

    Args:
        batch_sampler: Over `train_dataset`, as keyword.
    """

    def __init__(self, *args: Any, batch_sampler: BucketSampler, **kwargs: Any) -> None:
        if not isinstance(batch_sampler, BucketSampler):
            raise ValueError(
                f"batch_sampler={batch_sampler!r}: expected hf_longctx.training.BucketSampler(pieces.sizes, tokens)."
            )
        super().__init__(*args, **kwargs)
        self.batch_sampler = batch_sampler
        data_processes = self.accelerator.num_processes // _sharing(self.accelerator)
        together = data_processes * self.args.gradient_accumulation_steps
        if batch_sampler.together % together:
            raise ValueError(
                f"together={batch_sampler.together}: a step here has {together} batches ({data_processes} processes "
                f"or groups with data of their own, {self.args.gradient_accumulation_steps} accumulation steps). Make "
                f"the sampler with together={together}, so that each step is of one length."
            )
        self.add_callback(_Epochs(batch_sampler))

    def get_train_dataloader(self) -> DataLoader[Any]:
        """The batches of the sampler."""
        args = self.args
        loader = DataLoader(
            self.train_dataset,
            batch_sampler=self.batch_sampler,
            collate_fn=self.data_collator,
            num_workers=args.dataloader_num_workers,
            pin_memory=args.dataloader_pin_memory,
            persistent_workers=args.dataloader_persistent_workers,
            prefetch_factor=args.dataloader_prefetch_factor,
            worker_init_fn=partial(seed_worker, num_workers=args.dataloader_num_workers, rank=args.process_index),
        )
        prepared: DataLoader[Any] = self.accelerator.prepare(loader)
        return prepared


class BatchSamplerTrainer(BatchSamplerMixin, Trainer):
    """Trainer on the batches of a sampler: see `BatchSamplerMixin`."""


class _Epochs(TrainerCallback):
    """Says which epoch begins: where training is resumed, Trainer does not find the sampler to tell it."""

    def __init__(self, sampler: BucketSampler) -> None:
        self._sampler = sampler

    def on_epoch_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        self._sampler.set_epoch(int(state.epoch or 0))


def _sharing(accelerator: Any) -> int:
    """How many processes get the same batch."""
    config = getattr(accelerator, "parallelism_config", None)
    return int(config.non_data_parallel_size) if config is not None else 1
