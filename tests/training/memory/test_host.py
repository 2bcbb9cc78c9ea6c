"""Buffers of the host: their sizes, their number, and what comes back from them."""

from __future__ import annotations

import copy
import gc
from typing import Any

import torch

from hf_longctx.training.memory.host import HostBuffers
from hf_longctx.training.memory.kept import Keeper, _Kept
from tests.parallel.models import batch, checkpointed, make

from .rungs import EXACT, LADDERS, off, step

LAYERS = 3


def keeper_of(model: Any) -> Any:
    return vars(model.model)["_hf_longctx_kept_attention"]


def free_of(host: HostBuffers) -> list[torch.Tensor]:
    return [buffer for free in host.free.values() for buffer in free]


def kept_on_the_host(model: Any) -> HostBuffers:
    """Offload without pinned memory, which works without CUDA."""
    LADDERS["remat"].apply(model)
    checkpointed(model, "plain")
    host = keeper_of(model).host = HostBuffers(pin=False)
    return host


def test_the_gradients_are_those_of_the_stock_model() -> None:
    right = step(make("gemma3"), batch([[141]]))
    model = make("gemma3")
    host = kept_on_the_host(model)
    for _ in range(2):
        assert max(off(step(model, batch([[141]])), right).values()) < EXACT
    tokens = 141 * (9 * 8 * 4 + 9 * 4)  # the output and the log-sum-exp of each layer, in fp32
    assert host.bytes == LAYERS * tokens == sum(buffer.numel() for buffer in free_of(host))


def test_buffers_serve_other_lengths_too() -> None:
    model = make("llama")
    host = kept_on_the_host(model)
    for length in (20, 90, 40, 90, 91):
        step(model, batch([[length]]))
        assert len(free_of(host)) == 2 * LAYERS
    assert host.bytes == LAYERS * 91 * (9 * 8 * 4 + 9 * 4)


def test_a_step_that_is_given_up_gives_its_buffers_back() -> None:
    model = make("llama")
    host = kept_on_the_host(model)
    loss = model(**batch([[50]])).loss
    assert free_of(host) == []
    del loss
    gc.collect()
    assert len(free_of(host)) == 2 * LAYERS


def test_strides_come_back() -> None:
    kept = _Kept(Keeper(HostBuffers(pin=False)))
    given = (torch.randn(2, 3, 4).transpose(0, 1), torch.randn(2, 6)[:, ::2], torch.randn(0, 3), torch.randn(()), 7)
    kept.put(given)
    *tensors, number = kept.take("attention")
    assert number == 7
    for x, back in zip(given, tensors, strict=False):
        assert torch.equal(back, x)
        assert back.stride() == (torch.empty_like(x).stride() if x.numel() else x.stride())


def test_a_copy_has_buffers_of_its_own() -> None:
    host = HostBuffers(pin=False)
    host.give(host.take(10))
    assert copy.deepcopy(host).free == {}
