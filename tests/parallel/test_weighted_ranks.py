"""Losses by token and by document on ranks: data parallel, sequence parallel and both, against documents one by one."""

from __future__ import annotations

from typing import Any

import pytest
import torch
import torch.distributed as dist

from hf_longctx import SequenceParallel, SequenceParallelConfig, SequenceParallelMixin
from hf_longctx.training.losses import LossWeightingMixin
from hf_longctx.training.packing import PackCollator, pack
from tests.tiny import tiny
from tests.training.test_loss_weighting import EMPTY, EXACT, Catching, Caught, arguments, reference, rows

from .pool import Pool
from .test_trainer import launched


class Shared(LossWeightingMixin, SequenceParallelMixin, Catching):
    """The order of the guide."""


class SharedInside(SequenceParallelMixin, Caught):
    """The other order."""


def batches(kind: str) -> list[Any]:
    """Eight packs; of every two successive ones, which two groups get, none or one may have no target."""
    documents = rows(24)
    if kind == "full":
        return [documents[n : n + 3] for n in range(0, 24, 3)]
    if kind == "one without":
        return [part for n in range(0, 4) for part in (documents[3 * n : 3 * n + 3], [EMPTY])]
    return [[EMPTY]] * 8


def packed(part: list[Any]) -> dict[str, Any]:
    if part == [EMPTY]:
        return {**EMPTY, "position_ids": [0, 1, 2]}
    (found,) = [packs[n] for packs in [pack(part, 200)] for n in range(len(packs))]
    return found


def on_a_rank(weighting: str, kind: str, degree: int, inside: bool = False) -> dict[str, Any]:
    groups = dist.get_world_size() // degree
    with launched() as folder:
        more: dict[str, Any] = {}
        cls: Any = Caught
        if degree > 1:
            cls = SharedInside if inside else Shared
            more["parallelism_config"] = SequenceParallelConfig(SequenceParallel(degree=degree, cut="all"))
        args = arguments(
            folder, train_sampling_strategy="sequential", gradient_accumulation_steps=8 // groups, max_grad_norm=1.0,
            **more,
        )  # fmt: skip
        trainer = cls(
            model=tiny("llama"), args=args, train_dataset=[packed(part) for part in batches(kind)],
            data_collator=PackCollator(), loss_weighting=weighting,
        )  # fmt: skip
        before = trainer.model.lm_head.weight.detach().clone()
        trainer.train()
        (loss,) = [log["loss"] for log in trainer.state.log_history if "loss" in log]
        unchanged = torch.equal(before, trainer.model.lm_head.weight)
        return {"loss": loss, "unchanged": unchanged, "grads": {k: g.numpy() for k, g in trainer.grads.items()}}


@pytest.mark.parametrize("weighting", ["token", "sequence"])
@pytest.mark.parametrize("kind", ["full", "one without"])
@pytest.mark.parametrize("degree", [1, 2])
def test_two_ranks(two: Pool, weighting: str, kind: str, degree: int) -> None:
    compare(two.run(on_a_rank, weighting, kind, degree), kind, weighting)


@pytest.mark.parametrize("weighting", ["token", "sequence"])
def test_the_order_of_the_mixins_does_not_matter(two: Pool, weighting: str) -> None:
    compare(two.run(on_a_rank, weighting, "full", 2, True), "full", weighting)


@pytest.mark.parametrize("weighting", ["token", "sequence"])
@pytest.mark.parametrize("kind", ["full", "one without"])
def test_two_groups_of_two(four: Pool, weighting: str, kind: str) -> None:
    compare(four.run(on_a_rank, weighting, kind, 2), kind, weighting)


@pytest.mark.parametrize("degree", [1, 2])
def test_a_step_without_targets_is_skipped_by_all(two: Pool, degree: int) -> None:
    for found in two.run(on_a_rank, "sequence", "none", degree):
        assert found["loss"] == 0
        assert found["unchanged"]
        assert all(not g.any() for g in found["grads"].values())


def refused() -> str:
    with launched() as folder:
        args = arguments(folder, average_tokens_across_devices=False)
        try:
            Caught(model=tiny("llama"), args=args, train_dataset=[EMPTY], loss_weighting="token")
        except ValueError as error:
            return str(error)
    return ""


def test_counting_by_each_process_is_refused(two: Pool) -> None:
    assert all(
        "average_tokens_across_devices=False: loss_weighting='token' counts" in found for found in two.run(refused)
    )


def compare(found: list[dict[str, Any]], kind: str, weighting: str) -> None:
    documents = [row for part in batches(kind) for row in part if row != EMPTY]
    loss, grads = reference(tiny("llama"), documents, weighting)
    for answers in found:
        assert answers["loss"] == pytest.approx(loss, rel=EXACT)
        assert not answers["unchanged"]
        for name, right in grads.items():
            off = (torch.from_numpy(answers["grads"][name]) - right).norm() / right.norm()
            assert float(off) < EXACT, name
