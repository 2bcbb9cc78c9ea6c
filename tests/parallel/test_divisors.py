"""The loss's divisor that a caller gives is taken as it is, also below 1, as stock models take it."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
import torch.distributed as dist
from torch import Tensor
from transformers import Trainer

from hf_longctx import SequenceParallel, TrainingMemory

from .models import batch, make
from .pool import Pool
from .test_trainer import EXACT, Packs, logged, logged_on_a_rank

DIVISORS = [0.25, 3, torch.tensor(0.5), torch.tensor(7), torch.tensor([0.5])]


def losses(model: Any) -> list[float]:
    return [float(model(**batch([[40]]), num_items_in_batch=items).loss.detach()) for items in DIVISORS]


def losses_on_a_rank() -> list[float]:
    model = make("llama")
    with SequenceParallel(degree=dist.get_world_size()).on(model):
        return losses(model)


def test_divisors_on_ranks(two: Pool) -> None:
    right = losses(make("llama"))
    for found in two.run(losses_on_a_rank):
        assert found == pytest.approx(right, rel=EXACT)


def test_divisors_of_a_chunked_loss() -> None:
    model = make("llama")
    right = losses(model)
    with TrainingMemory(tile=None).on(model):
        assert losses(model) == pytest.approx(right, rel=EXACT)


class OneTarget(Packs):
    """Of each pack one token is a target."""

    def __getitem__(self, i: int) -> dict[str, Tensor]:
        given = super().__getitem__(i)
        last = int((given["labels"] != -100).nonzero().max())
        return given | {"labels": given["labels"].where(torch.arange(len(given["labels"])) == last, -100)}


def test_a_step_of_one_target_that_counts_its_own_tokens(two: Pool, tmp_path: Path) -> None:
    names, more = ("loss", "grad_norm"), {"average_tokens_across_devices": False, "data": OneTarget}
    right = logged(Trainer, str(tmp_path), *names, **more)
    for found in two.run(logged_on_a_rank, names, more):
        assert found == pytest.approx(right, rel=1e-4)
