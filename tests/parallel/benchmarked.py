"""What a rank runs of the benchmark; apart from its tests, so that ranks import little."""

from __future__ import annotations

import importlib
from functools import partial
from types import SimpleNamespace
from typing import Any

import torch
import torch.distributed as dist

from recipes.benchmarks.sequence_parallel.world import World


def world() -> World:
    return World(dist.get_rank(), dist.get_world_size(), tiny=True, device=torch.device("cpu"))


def ready() -> str:
    """Import what the parts need, which takes longest of all."""
    return importlib.import_module("recipes.benchmarks.sequence_parallel.train").__name__


def samples(part: str, settings: dict[str, Any]) -> list[dict[str, Any]]:
    """What a part yields on this process."""
    module = importlib.import_module(f"recipes.benchmarks.sequence_parallel.{part}")
    return list(module.work(world(), **settings))


def reordered() -> bool:
    """Are log-probabilities of accelerate's parts put into the order of the batch? A model that answers with ids."""
    from torch.distributed.device_mesh import init_device_mesh
    from torch.distributed.tensor.experimental import context_parallel

    from recipes.benchmarks.sequence_parallel.rival import Rival

    rival = object.__new__(Rival)
    rival.world = world()
    mesh = init_device_mesh("cpu", (rival.world.size,))
    rival.accelerator = SimpleNamespace(maybe_context_parallel=partial(context_parallel, mesh))
    rival.model = lambda input_ids, **given: SimpleNamespace(logits=input_ids)
    ids = torch.randint(3, 90, (1, 32), generator=torch.Generator().manual_seed(0))
    batch = {"input_ids": ids, "position_ids": torch.arange(32)[None], "labels": ids}
    with rival.shared(batch) as given:
        assert given["input_ids"].shape == (1, 16)
    return torch.equal(rival.log_probs(batch), ids)
