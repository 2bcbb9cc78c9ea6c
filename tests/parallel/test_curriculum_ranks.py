"""Batches of one length on ranks: accelerate deals them to processes, or to groups that share one."""

from __future__ import annotations

import random
from typing import Any

import pytest
import torch.distributed as dist
from transformers import TrainingArguments

from hf_longctx import SequenceParallel, SequenceParallelConfig, SequenceParallelMixin
from hf_longctx.training.curriculum import BatchSamplerTrainer, BucketSampler, Decomposed, decompose
from tests.tiny import tiny

from .pool import Pool
from .test_trainer import launched


class Shared(SequenceParallelMixin, BatchSamplerTrainer):
    pass


def pieces() -> Decomposed:
    rng = random.Random(0)
    texts = [[rng.randrange(3, 60) for _ in range(rng.randrange(2, 300))] for _ in range(20)]
    return decompose(texts, shortest=8, longest=64)


def on_a_rank(degree: int) -> tuple[list[list[list[int]]], list[float]]:
    """The batches of a rank in two epochs, and the losses."""
    made, seen = pieces(), []
    with launched() as folder:
        more: dict[str, Any] = {}
        if degree > 1:
            more["parallelism_config"] = SequenceParallelConfig(SequenceParallel(degree=degree))
        args = TrainingArguments(
            folder, num_train_epochs=2, gradient_accumulation_steps=2, logging_steps=1, use_cpu=True, report_to=[],
            disable_tqdm=True, save_strategy="no", **more,
        )  # fmt: skip

        class Watched(Shared if degree > 1 else BatchSamplerTrainer):  # type: ignore[misc]
            def training_step(self, model: Any, inputs: Any, *args: Any, **kwargs: Any) -> Any:
                seen.append(inputs["input_ids"].tolist())
                return super().training_step(model, inputs, *args, **kwargs)

        sampler = BucketSampler(made.sizes, 64, curriculum="grow-p2", together=2 * dist.get_world_size() // degree)
        trainer = Watched(
            model=tiny("llama"), args=args, train_dataset=made, data_collator=Decomposed.collate, batch_sampler=sampler
        )
        trainer.train()
        return seen, [log["loss"] for log in trainer.state.log_history if "grad_norm" in log]


def right(together: int) -> list[list[list[int]]]:
    made = pieces()
    sampler = BucketSampler(made.sizes, 64, curriculum="grow-p2", together=together)
    return [[made[n]["input_ids"][:-1].tolist() for n in batch] for _ in range(2) for batch in sampler]


@pytest.mark.parametrize("degree", [1, 2])
def test_two_ranks(two: Pool, degree: int) -> None:
    batches = right(4 // degree)
    for rank, (seen, losses) in enumerate(two.run(on_a_rank, degree)):
        assert seen == (batches[rank::2] if degree == 1 else batches)
        # one length a step, of two batches a process
        assert all(len(a[0]) == len(b[0]) for a, b in zip(seen[::2], seen[1::2], strict=True))
        assert len(losses) == len(seen) // 2
