"""What is drawn at random in training: apart on ranks, as large as in one process, and nothing where nothing is."""

from __future__ import annotations

import tempfile
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torch.distributed as dist
from torch import Tensor, nn
from transformers import MixtralConfig, MixtralForCausalLM, Trainer, TrainerCallback

from hf_longctx import SequenceParallel, SequenceParallelConfig, SequenceParallelTrainer

from .models import BASE, batch, make
from .pool import Pool
from .test_trainer import Packs, arguments, collate, launched

ALPHA = 50.0


class Noise(TrainerCallback):
    """Notes what Trainer's NEFTune adds to embeddings, in each step."""

    def __init__(self) -> None:
        self.seen: list[Tensor] = []

    def on_train_begin(self, *_: Any, model: Any, **__: Any) -> None:
        model.get_input_embeddings().register_forward_hook(self._look)

    def _look(self, module: Any, args: tuple[Tensor], out: Tensor) -> None:
        self.seen.append((out - nn.functional.embedding(args[0], module.weight)).detach()[0])


def noise_of(cls: Any, folder: str, **more: Any) -> Any:
    """Of one pack of 104 tokens, (L, H)."""
    noise = Noise()
    args = arguments(folder, neftune_noise_alpha=ALPHA, max_steps=1, learning_rate=0.0, **more)
    model = make("llama")
    more = {"train_dataset": Packs(1), "data_collator": collate, "callbacks": [noise]}
    cls(model=model, args=args, **more).train()
    assert "neftune_noise_alpha" not in vars(model.get_input_embeddings())
    return noise.seen[0].numpy()


def noise_on_a_rank() -> Any:
    with launched() as folder:
        config = SequenceParallelConfig(SequenceParallel(degree=dist.get_world_size(), cut="all"))
        return noise_of(SequenceParallelTrainer, folder, parallelism_config=config)


@pytest.mark.parametrize("pool", ["two", "four"])
def test_neftune_is_as_loud_as_in_one_process_and_another_one_on_each_rank(
    pool: str, request: pytest.FixtureRequest, tmp_path: Path
) -> None:
    ranks: Pool = request.getfixturevalue(pool)
    with tempfile.TemporaryDirectory(dir=tmp_path) as folder:
        right = noise_of(Trainer, folder)
    found = ranks.run(noise_on_a_rank)
    assert sum(map(len, found)) == len(right)
    for noise in found:
        assert abs(noise).max() == pytest.approx(abs(right).max(), rel=0.02)
        assert noise.std() == pytest.approx(right.std(), rel=0.05)
    rows = min(map(len, found))
    first, *others = (noise[:rows].ravel() for noise in found)
    for other in others:
        assert abs(np.corrcoef(first, other)[0, 1]) < 0.1


def jittering() -> Any:
    torch.manual_seed(0)
    experts = {"num_local_experts": 4, "num_experts_per_tok": 2, "router_jitter_noise": 0.3}
    return MixtralForCausalLM(MixtralConfig(**BASE, **experts)).train()


def drawn(what: str) -> tuple[bool, float, float]:
    """Whether a forward moves the generator, what comes from it afterwards, and of the last factor of a router."""
    model = jittering() if what == "jitter" else make("llama").train(what != "evaluation")
    with SequenceParallel(degree=2).on(model):
        torch.manual_seed(7)
        before = torch.get_rng_state()
        factors: list[float] = []
        stock = Tensor.uniform_

        def uniform_(self: Tensor, *args: Any, **kwargs: Any) -> Tensor:
            found = stock(self, *args, **kwargs)
            factors.append(float(found.flatten()[0]))
            return found

        with pytest.MonkeyPatch.context() as patched:
            patched.setattr(Tensor, "uniform_", uniform_)
            model(**batch([[40, 20]]))
        moved = not torch.equal(before, torch.get_rng_state())
        return moved, float(torch.rand(())), factors[-1] if factors else 0.0


def test_routers_of_ranks_jitter_apart_and_generators_go_on_alike(two: Pool) -> None:
    (moved, after, factor), (others_moved, after_other, others_factor) = two.run(drawn, "jitter")
    assert moved
    assert others_moved
    assert after == after_other
    assert factor != others_factor


@pytest.mark.parametrize("what", ["training", "evaluation"])
def test_a_model_that_draws_nothing_leaves_the_generator(two: Pool, what: str) -> None:
    for moved, _, _ in two.run(drawn, what):
        assert not moved
