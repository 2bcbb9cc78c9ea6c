"""Training on two cards: Trainer under FSDP2, reads of a whole step, and accelerate's context parallelism checked."""

from __future__ import annotations

import warnings
from collections.abc import Iterator
from typing import Any

import pytest
import torch
import torch.distributed as dist
from transformers import Trainer

from hf_longctx import SequenceParallel
from hf_longctx.training.check import train_check
from tests.parallel.models import PACKED, batch, checkpointed, make
from tests.parallel.pool import Pool
from tests.parallel.test_trainer import arguments, checkpointing_of, compare, on_a_rank, run

pytestmark = [pytest.mark.gpu, pytest.mark.dist]

FSDP2: dict[str, Any] = {
    "use_cpu": False,
    "fsdp": True,
    "fsdp_config": {"version": 2, "transformer_layer_cls_to_wrap": ["LlamaDecoderLayer"]},
}


@pytest.fixture(scope="module")
def cards(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Pool]:
    pool = Pool(2, tmp_path_factory.mktemp("cards"), "nccl")
    yield pool
    pool.close()


def one_card(folder: str, checkpointing: str) -> dict[str, Any]:
    args = arguments(folder, gradient_accumulation_steps=2, use_cpu=False, **checkpointing_of(checkpointing))
    assert args.device.type == "cuda"
    args._n_gpu = 1  # Trainer would copy the model to every card that it sees
    return run(Trainer, args, make("llama"))


def under_fsdp2(checkpointing: str) -> dict[str, Any]:
    """In fp32, as the weights are: TF32 and autocast are off."""
    return on_a_rank(2, checkpointing, **FSDP2)


@pytest.mark.parametrize("checkpointing", ["", "plain"])
def test_trainer_under_fsdp2_is_one_card(cards: Pool, tmp_path: Any, checkpointing: str) -> None:
    """Losses and gradient norms of three steps, eval_loss, and the rows of predict."""
    compare(one_card(str(tmp_path), checkpointing), cards.run(under_fsdp2, checkpointing))


def waits_of_a_step(kind: str, checkpointing: str) -> list[str]:
    """What torch says of waiting for the device, of a forward and a backward pass."""
    model = make("gemma3").cuda().to(torch.bfloat16)
    if checkpointing:
        checkpointed(model, checkpointing)
    given = {name: x.cuda() for name, x in batch([PACKED]).items()}
    with SequenceParallel(degree=dist.get_world_size(), kind=kind, cut=30).on(model):
        model(**given).loss.backward()  # kernels are checked, and connections opened, on their first use
        torch.cuda.synchronize()
        with warnings.catch_warnings(record=True) as said:
            warnings.simplefilter("always")
            torch.cuda.set_sync_debug_mode("warn")
            try:
                model(**given).loss.backward()
            finally:
                torch.cuda.set_sync_debug_mode("default")
    return [f"{one.filename}:{one.lineno}" for one in said if "called a synchronizing" in str(one.message)]


@pytest.mark.parametrize("checkpointing", ["", "plain"])
@pytest.mark.parametrize("kind", ["ring", "gather", "ulysses"])
def test_a_step_waits_once(cards: Pool, kind: str, checkpointing: str) -> None:
    for waits in cards.run(waits_of_a_step, kind, checkpointing):
        assert len(waits) == 1, waits


def under_accelerate(rows: list[list[int]]) -> dict[str, bool]:
    model = make("llama").cuda().to(torch.bfloat16)
    return {found.name: found.holds for found in train_check(model, batch(rows), "context parallel")}


def test_what_accelerate_does_to_a_packed_batch(cards: Pool) -> None:
    """Torch shares the tokens of one document rightly; packed ones see each other."""
    for found in cards.run(under_accelerate, [[152]]):
        assert all(found.values()), found
    for found in cards.run(under_accelerate, [[61, 40, 51]]):
        assert not found["documents do not see each other"]
        assert not found["gradients"]


def refused(rows: list[list[int]], dtype: torch.dtype) -> str:
    try:
        list(train_check(make("llama").cuda().to(dtype), batch(rows), "context parallel"))
    except ValueError as error:
        return str(error)
    return "no error"


def test_what_torch_cannot_share_is_named(cards: Pool) -> None:
    for said in cards.run(refused, [[152]], torch.float32):
        assert "expects bfloat16 or float16" in said
    for said in cards.run(refused, [[150]], torch.bfloat16):
        assert "150 tokens a row: torch expects a multiple of 4" in said
