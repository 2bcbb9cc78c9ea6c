"""One read of the device a step, before the first layer, for documents and fingerprint: counted where torch does it."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import pytest
import torch
import torch.distributed as dist
from torch.utils._python_dispatch import TorchDispatchMode

from hf_longctx import SequenceParallel

from .models import PACKED, batch, checkpointed, make
from .pool import Pool

# what waits for a device: a number for Python, and results whose size depends on values
WAITING = ("_local_scalar_dense", "nonzero", "unique", "masked_select", "_unique2", "is_nonzero", "equal")
INDEXING = ("index", "index_put", "index_put_", "_unsafe_index")  # waits for the size of a mask


class Waiting(TorchDispatchMode):
    """Counts operators that would wait for a device."""

    def __init__(self) -> None:
        super().__init__()
        self.found: list[str] = []

    def __torch_dispatch__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        name = function.name().removeprefix("aten::").split(".")[0]
        indices = args[1] if name in INDEXING else ()
        masked = any(isinstance(x, torch.Tensor) and x.dtype == torch.bool for x in indices)
        if name in WAITING or masked:
            self.found.append(name)
        return function(*args, **(kwargs or {}))


@contextmanager
def reads() -> Iterator[list[int]]:
    """How many numbers `Tensor.cpu` moves, for each call."""
    moved: list[int] = []
    stock = torch.Tensor.cpu

    def cpu(self: torch.Tensor) -> torch.Tensor:
        moved.append(self.numel())
        return stock(self)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(torch.Tensor, "cpu", cpu)
        yield moved


def counted(name: str, kind: str, checkpointing: str) -> tuple[int, list[str]]:
    """Reads of a step, and what waits from the first layer on, to the end of backward."""
    model = make(name)
    if checkpointing:
        checkpointed(model, checkpointing)
    waiting = Waiting()
    embedding = model.get_input_embeddings()
    switch = SequenceParallel(degree=dist.get_world_size(), kind=kind, cut=30)
    with switch.on(model), reads() as moved:
        hooks = [
            embedding.register_forward_hook(lambda *_: waiting.__enter__() and None),
            model.model.norm.register_forward_hook(lambda *_: waiting.__exit__(None, None, None)),
        ]
        loss = model(**batch([PACKED])).loss
        for hook in hooks:
            hook.remove()
        with waiting:
            loss.backward()
    return len(moved), waiting.found


@pytest.mark.parametrize("checkpointing", ["", "plain"])
@pytest.mark.parametrize("kind", ["ring", "gather", "ulysses"])
@pytest.mark.parametrize("name", ["llama", "gemma3"])
def test_one_read_a_step_and_none_from_the_first_layer_on(two: Pool, name: str, kind: str, checkpointing: str) -> None:
    for moved, waited in two.run(counted, name, kind, checkpointing):
        assert moved == 1
        assert waited == []


def test_what_is_counted() -> None:
    with Waiting() as waiting:
        x = torch.ones(3)
        x.sum().item()
        bool(x.sum() > 0)
        x.nonzero()
        x[x > 0]
    assert waiting.found == ["_local_scalar_dense", "_local_scalar_dense", "nonzero", "index"]
