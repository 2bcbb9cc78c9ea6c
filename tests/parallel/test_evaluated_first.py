"""What surrounds a training: an evaluation before it, and the launcher's wish for FSDP2 where there is none."""

from __future__ import annotations

import os
from typing import Any
from unittest import mock

import pytest
import torch
import torch.distributed as dist
from torch import Tensor

from hf_longctx import SequenceParallel, SequenceParallelConfig, SequenceParallelTrainer

from .models import make
from .pool import Pool
from .test_trainer import Packs, arguments, collate, launched


def trainer_in(folder: str) -> Any:
    config = SequenceParallelConfig(SequenceParallel(degree=2, cut="all"))
    args = arguments(folder, parallelism_config=config)
    return SequenceParallelTrainer(
        model=make("llama"), args=args, train_dataset=Packs(), eval_dataset=Packs(2), data_collator=collate
    )


def weights(evaluated: bool) -> tuple[Tensor, bool]:
    """A weight after three steps, and whether the other rank has the same."""
    with launched() as folder:
        trainer = trainer_in(folder)
        if evaluated:
            trainer.evaluate()
        trainer.train()
        assert isinstance(trainer.model_wrapped, torch.nn.parallel.DistributedDataParallel)
        weight = trainer.model.model.layers[1].self_attn.k_proj.weight.detach().clone()
        both = [torch.empty_like(weight) for _ in range(2)]
        dist.all_gather(both, weight)
        return weight, torch.equal(*both)


def test_an_evaluation_before_training_changes_nothing(two: Pool) -> None:
    for (plain, _), (weight, same) in zip(two.run(weights, False), two.run(weights, True), strict=True):
        assert same
        torch.testing.assert_close(weight, plain)


def refused() -> str:
    with launched() as folder, mock.patch.dict(os.environ, {"ACCELERATE_USE_FSDP": "true", "FSDP_VERSION": "2"}):
        with pytest.raises(ValueError, match="not FSDP2") as caught:
            trainer_in(folder)
        return str(caught.value)


def test_a_launcher_that_asks_for_fsdp_on_a_cpu(two: Pool) -> None:
    for message in two.run(refused):
        assert "accelerate runs MULTI_CPU here, not FSDP2" in message
