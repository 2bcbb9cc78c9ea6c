"""Trainers of hf_longctx refuse a process that sees several GPUs, where stock Trainer takes torch.nn.DataParallel."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pytest
import torch
from torch.nn.parallel import DataParallel
from transformers import Trainer, TrainingArguments

from hf_longctx import (
    SequenceParallel,
    SequenceParallelConfig,
    SequenceParallelTrainer,
    TrainingMemory,
    TrainingMemoryMixin,
    applied,
)
from hf_longctx.training import BatchSamplerTrainer, BucketSampler, LossWeightingTrainer
from tests.tiny import tiny
from tests.two_gpus import two_gpus

pytestmark = pytest.mark.skipif(torch.cuda.is_available(), reason="there is CUDA, and the test has two GPUs of its own")


class FarTrainer(TrainingMemoryMixin, Trainer):
    pass


def sharing() -> dict[str, Any]:
    return {"parallelism_config": SequenceParallelConfig(SequenceParallel(degree=1))}


TRAINERS: dict[str, tuple[Any, dict[str, Any]]] = {
    "sequence parallelism": (SequenceParallelTrainer, {}),
    "memory": (FarTrainer, {"memory": TrainingMemory(remat="attention")}),
    "weights": (LossWeightingTrainer, {"loss_weighting": "sequence"}),
    "sampler": (BatchSamplerTrainer, {"batch_sampler": BucketSampler([8, 8], 8)}),
}


@pytest.fixture(autouse=True)
def _two_gpus(monkeypatch: pytest.MonkeyPatch) -> None:
    two_gpus(monkeypatch.setattr)


def arguments(folder: Path, **more: Any) -> TrainingArguments:
    return TrainingArguments(str(folder), report_to=[], **more)


def test_stock_trainer_takes_data_parallel(tmp_path: Path) -> None:
    trainer = Trainer(model=tiny("llama"), args=arguments(tmp_path))
    assert trainer.args.n_gpu == 2
    assert isinstance(trainer._wrap_model(trainer.model), DataParallel)


@pytest.mark.parametrize("name", TRAINERS)
def test_ours_refuse_it_and_leave_the_model_alone(name: str, tmp_path: Path) -> None:
    cls, more = TRAINERS[name]
    model = tiny("llama")
    args = arguments(tmp_path, **(sharing() if cls is SequenceParallelTrainer else {}))
    said = f"{cls.__name__}: 2 GPUs are visible to this one process, so Trainer would split each batch among them by"
    with pytest.raises(ValueError, match=re.escape(said)) as error:
        cls(model=model, args=args, **more)
    assert "accelerate launch --num_processes 2" in str(error.value)
    assert "CUDA_VISIBLE_DEVICES=0" in str(error.value)
    assert not applied(model)
    assert "forward" not in vars(model)


@pytest.mark.parametrize("name", TRAINERS)
def test_a_model_on_several_gpus_is_taken(name: str, tmp_path: Path) -> None:
    """By its device_map: Trainer counts one GPU then."""
    cls, more = TRAINERS[name]
    model = tiny("llama")
    model.hf_device_map = {"model.layers.0": 0, "model.layers.1": 1}
    args = arguments(tmp_path, **(sharing() if cls is SequenceParallelTrainer else {}))
    assert cls(model=model, args=args, **more).args.n_gpu == 1
