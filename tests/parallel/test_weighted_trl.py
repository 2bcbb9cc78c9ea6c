"""TRL's SFTTrainer on packs of ours, with losses by token and by document: one process, and two that share a batch."""

from __future__ import annotations

import tempfile
from typing import Any

import pytest

pytest.importorskip("trl")

from datasets import Dataset
from trl import SFTConfig, SFTTrainer

from hf_longctx import SequenceParallel, SequenceParallelConfig, SequenceParallelMixin
from hf_longctx.training.losses import LossWeightingMixin
from hf_longctx.training.packing import pack
from tests.tiny import tiny
from tests.training.test_loss_weighting import EXACT, reference, rows

from .pool import Pool
from .test_trainer import launched
from .test_trl import tokenizer


class WeightedSFTTrainer(LossWeightingMixin, SFTTrainer):
    pass


class SharedSFTTrainer(LossWeightingMixin, SequenceParallelMixin, SFTTrainer):
    pass


def trainer(cls: Any, folder: str, weighting: str, data: Dataset, **more: Any) -> Any:
    args = SFTConfig(
        folder, **{"padding_free": True, "dataset_kwargs": {"skip_prepare_dataset": True}, "max_length": None},
        **{"per_device_train_batch_size": 1, "max_steps": 1, "logging_steps": 1, "use_cpu": True, "bf16": False},
        **{"report_to": [], "disable_tqdm": True, "save_strategy": "no", "optim": "sgd", **more},
    )  # fmt: skip
    return cls(
        model=tiny("llama"), args=args, train_dataset=data, processing_class=tokenizer(), loss_weighting=weighting
    )


def packed() -> Dataset:
    return Dataset.from_list(pack(Dataset.from_list(rows()), 100).rows())


def step(made: Any) -> tuple[float, float]:
    made.train()
    (log,) = [log for log in made.state.log_history if "grad_norm" in log]
    return log["loss"], log["grad_norm"]


def on_a_rank(weighting: str) -> tuple[float, float]:
    data = packed()
    with launched() as folder:
        config = SequenceParallelConfig(SequenceParallel(degree=2, cut="all"))
        more = {"parallelism_config": config, "gradient_accumulation_steps": len(data)}
        return step(trainer(SharedSFTTrainer, folder, weighting, data, **more))


def right(weighting: str) -> tuple[float, float]:
    loss, grads = reference(tiny("llama"), rows(), weighting)
    return loss, sum(float(g.norm() ** 2) for g in grads.values()) ** 0.5


@pytest.mark.parametrize("weighting", ["token", "sequence"])
def test_one_process(weighting: str) -> None:
    data = packed()
    with tempfile.TemporaryDirectory() as folder:
        made = trainer(WeightedSFTTrainer, folder, weighting, data, gradient_accumulation_steps=len(data))
        assert step(made) == pytest.approx(right(weighting), rel=EXACT)


@pytest.mark.parametrize("weighting", ["token", "sequence"])
def test_two_ranks_that_share_a_batch(two: Pool, weighting: str) -> None:
    for found in two.run(on_a_rank, weighting):
        assert found == pytest.approx(right(weighting), rel=EXACT)


def test_another_kind_of_loss_is_refused() -> None:
    with tempfile.TemporaryDirectory() as folder, pytest.raises(ValueError, match="loss_type='dft' computes a loss"):
        trainer(WeightedSFTTrainer, folder, "sequence", packed(), loss_type="dft")
