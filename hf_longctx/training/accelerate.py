"""`SequenceParallelConfig`: tells accelerate which processes share a batch."""

from __future__ import annotations

import os
from typing import Any

import torch.distributed as dist
from accelerate import ParallelismConfig
from torch import nn
from transformers import PreTrainedModel

from ..parallel.model.forward import STATE
from ..parallel.model.switch import SequenceParallel
from ..patch import unwrap
from .failures import name_failures
from .streams import read_by_each


class SequenceParallelConfig(ParallelismConfig):
    """Processes in groups that share a batch, for `TrainingArguments(parallelism_config=)` and `Accelerator`.

    Accelerate's data loader then hands all processes of a group the same batch, also of an `IterableDataset`, which
    each process reads itself, and FSDP2 shards over all processes.
    Its own context parallelism, which drops masks and refuses windows, stays off: the switch does the work. With a
    plain `Accelerator`, apply `config.switch` to the model before `accelerator.prepare`; trainers with
    `SequenceParallelMixin` do so.

    Args:
        switch: How a batch is shared; its degree must divide the number of processes.
        shard: Several groups under FSDP2 shard the model among them too. False: each group has the model (DDP). For
            one group it says nothing.
    """

    # accelerate's own context parallelism; `cp_size`, by which Trainer counts, carries the degree
    cp_enabled = False

    def __init__(self, switch: SequenceParallel | None = None, shard: bool = False) -> None:
        super().__init__(dp_replicate_size=1, dp_shard_size=1, tp_size=1, cp_size=1, sp_size=1)
        self.switch = SequenceParallel() if switch is None else switch
        launched = int(os.environ.get("WORLD_SIZE", 1))
        processes = dist.get_world_size() if dist.is_initialized() else launched
        degree = self.switch.processes(processes)
        if processes % degree:
            raise ValueError(
                f"degree={degree}: {processes} processes cannot be split into groups of {degree}. Start another number "
                f"of processes (torchrun --nproc_per_node {degree}), or choose a degree that divides it."
            )
        self._set_size("cp", degree)
        self._set_size("dp_shard" if shard else "dp_replicate", processes // degree)

    @property
    def non_dp_dim_names(self) -> list[str]:
        """The dimension of the mesh whose processes get the same batch."""
        return ["cp"] if self.cp_size > 1 else []

    @property
    def dp_shard_cp_dim_names(self) -> list[str]:
        """The dimensions over which FSDP2 shards."""
        return (["dp_shard"] if self.dp_shard_enabled else []) + self.non_dp_dim_names

    @property
    def dp_cp_dim_names(self) -> list[str]:
        """The dimensions over which losses are averaged: all."""
        return [*self.dp_dim_names, *self.non_dp_dim_names]

    def _validate_accelerator(self, accelerator: Any) -> None:
        if self.total_size != accelerator.num_processes:
            raise ValueError(
                f"SequenceParallelConfig was made for {self.total_size} processes, and there are "
                f"{accelerator.num_processes}. Make it in the processes that train, after they were launched."
            )
        _refuse_stock_models(accelerator)
        if self.cp_size > 1:
            read_by_each(accelerator)
        name_failures(accelerator.process_index, accelerator.num_processes)


def _refuse_stock_models(accelerator: Any) -> None:
    """Let `accelerator.prepare` refuse a model without the switch: each process would count the whole batch."""
    stock = accelerator.prepare

    def prepare(*objects: Any, **kwargs: Any) -> Any:
        for given in objects:
            root = unwrap(given) if isinstance(given, nn.Module) else None
            if isinstance(root, PreTrainedModel) and STATE not in vars(root):
                raise ValueError(
                    f"{type(root).__name__}: SequenceParallelConfig gives a group of processes one batch, and the "
                    f"model does not share it. Put SequenceParallelMixin before the trainer, or apply config.switch "
                    f"to the model before accelerator.prepare."
                )
        return stock(*objects, **kwargs)

    accelerator.prepare = prepare
