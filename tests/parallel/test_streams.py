"""Datasets that are streams: the processes of a group read the same rows, as one stock process reads them."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.distributed as dist
from torch import Tensor
from transformers import Trainer

from hf_longctx import SequenceParallel, SequenceParallelConfig, SequenceParallelTrainer

from .models import make
from .pool import Pool
from .test_trainer import EXACT, Packs, arguments, collate, launched


class Stream(torch.utils.data.IterableDataset):
    """The packs one after the other; of one length, or of many, as in a batch of its own each."""

    def __init__(self, tokens: int | None) -> None:
        self.tokens = tokens

    def __iter__(self) -> Iterator[dict[str, Tensor]]:
        packs = Packs()
        for i in range(len(packs)):
            yield {name: x[: self.tokens] for name, x in packs[i].items()}


def trained(cls: Any, folder: str, tokens: int | None, **more: Any) -> list[float]:
    """Losses of three steps, and that of evaluation."""
    data = {"train_dataset": Stream(tokens), "eval_dataset": Stream(tokens), "data_collator": collate}
    trainer = cls(model=make("llama"), args=arguments(folder, **more), **data)
    trainer.train()
    return [log["loss"] for log in trainer.state.log_history if "grad_norm" in log] + [trainer.evaluate()["eval_loss"]]


def trained_on_ranks(tokens: int | None, accumulated: int = 1) -> list[float]:
    with launched() as folder:
        config = SequenceParallelConfig(SequenceParallel(degree=2, cut="all"))
        return trained(
            SequenceParallelTrainer,
            folder,
            tokens,
            parallelism_config=config,
            gradient_accumulation_steps=accumulated * 2 // dist.get_world_size(),
        )


@pytest.mark.parametrize("tokens", [50, None])
def test_a_stream_on_two_ranks(two: Pool, tmp_path: Path, tokens: int | None) -> None:
    right = trained(Trainer, str(tmp_path), tokens)
    for found in two.run(trained_on_ranks, tokens):
        assert found == pytest.approx(right, rel=EXACT)


def test_a_stream_on_two_groups(four: Pool, tmp_path: Path) -> None:
    right = trained(Trainer, str(tmp_path), 50, gradient_accumulation_steps=2)
    for found in four.run(trained_on_ranks, 50, 2):
        assert found[:3] == pytest.approx(right[:3], rel=EXACT)


def dispatched() -> str:
    config = SequenceParallelConfig(SequenceParallel(degree=2))
    asked = {"accelerator_config": {"dispatch_batches": True}, "parallelism_config": config}
    with launched() as folder:
        try:
            trained(SequenceParallelTrainer, folder, 50, **asked)
        except ValueError as error:
            return str(error)
    return ""


def test_batches_that_one_process_would_hand_out_are_refused(two: Pool) -> None:
    for message in two.run(dispatched):
        assert message.startswith("dispatch_batches=True: the first process would hand every process another batch")
        assert "Leave it out of accelerator_config" in message
