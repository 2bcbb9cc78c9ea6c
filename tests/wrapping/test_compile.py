"""`torch.compile(model)`: whole graphs, without a cache and with one that grows or wraps around."""

from __future__ import annotations

import copy
from collections.abc import Iterator
from typing import Any

import pytest
import torch
from transformers import DynamicCache

import hf_longctx
from tests.contract.registry import close
from tests.tiny import logits_of, text, tiny
from tests.wrapping.cases import METHODS, each_method

IDS = text(2, 14)


@pytest.fixture(autouse=True)
def _fresh_dynamo() -> Iterator[None]:
    torch._dynamo.reset()
    yield
    torch._dynamo.reset()


# the "eager" backend runs the traced graph as it is: what is tested is that tracing keeps the meaning
@each_method
def test_a_compiled_forward_equals_eager_without_and_with_a_cache(method: Any) -> None:
    model = tiny()
    method.apply(model)
    eager = logits_of(model, IDS, use_cache=False)
    # native methods run transformers' own rotary embedding, whose longrope breaks the graph in 5.17
    compiled = torch.compile(model, fullgraph=not method.native, backend="eager")
    close(logits_of(compiled, IDS, use_cache=False), eager, "without a cache")
    cache, steps = DynamicCache(), []
    for part in (IDS[:, :12], IDS[:, 12:13], IDS[:, 13:]):
        steps.append(logits_of(compiled, part, past_key_values=cache))
    close(torch.cat(steps, 1), eager, "with a cache")
    assert [p.method for p in hf_longctx.applied(compiled)] == [method]
    hf_longctx.undo(compiled)
    close(logits_of(compiled, IDS, use_cache=False), logits_of(tiny(), IDS), "undone: the graph is not used any more")


@pytest.mark.parametrize("row", ["lm_infinite_top3", "rope_scaling"])
def test_gradients_flow_through_a_compiled_forward(row: str) -> None:
    model = tiny().train()
    METHODS[row].apply(model)

    def gradients(call: Any) -> list[torch.Tensor]:
        model.zero_grad()
        call(IDS, labels=IDS, use_cache=False).loss.backward()
        return [p.grad.clone() for p in model.parameters()]

    plain = gradients(model)
    for mine, other in zip(gradients(torch.compile(model, backend="aot_eager")), plain, strict=True):
        close(mine, other)


@each_method
def test_sizes_that_are_dynamic_are_compiled_and_read_a_cache_and_a_copy_of_it(method: Any) -> None:
    """So are those of a second model with another window, which the compiler takes for dynamic by itself."""
    model = tiny()
    method.apply(model)
    eager = logits_of(model, IDS, use_cache=False)
    compiled, cache = torch.compile(model, dynamic=True, backend="eager"), DynamicCache()
    close(logits_of(compiled, IDS[:, :12], past_key_values=cache), eager[:, :12], "an empty cache")
    for layer in cache.layers:
        if hasattr(layer, "owner"):
            layer.owner = copy.deepcopy(layer.owner)  # as in a cache that was saved and loaded
    other = copy.deepcopy(cache)
    for name, held in (("a cache", cache), ("a copy of it", other)):
        close(logits_of(compiled, IDS[:, 12:13], past_key_values=held), eager[:, 12:13], name)
