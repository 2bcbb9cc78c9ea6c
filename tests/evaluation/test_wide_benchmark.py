"""What the benchmark of models with sinks, soft-caps and latent keys does to stock models, without any method."""

from __future__ import annotations

import copy
from dataclasses import replace

import pytest
import torch
from transformers import DynamicCache

from hf_longctx.upstream.caches import given_cache
from recipes.benchmarks.hydragen import cast_
from recipes.benchmarks.wide_cached import in_fp32
from recipes.benchmarks.wide_graph import Writer, steady_cache
from recipes.benchmarks.wide_models import GEOMETRIES, TINY, build, equal_experts

FAMILIES = sorted(GEOMETRIES)
IDS = torch.randint(3, 160, (1, 40), generator=torch.Generator().manual_seed(0))


@pytest.mark.parametrize("family", FAMILIES)
@torch.no_grad()
def test_half_precision_weights_computed_in_fp32_are_a_model_cast_to_fp32(family: str) -> None:
    model = build(GEOMETRIES[family], TINY, "cpu", torch.bfloat16)
    before = copy.deepcopy(model.state_dict())
    with in_fp32(model):
        found = model(IDS).logits
    wide = copy.deepcopy(model)
    cast_(wide, torch.float32)
    if hasattr(wide, "set_experts_implementation"):
        wide.set_experts_implementation("eager")
    assert torch.equal(found, wide(IDS).logits)
    assert not torch.equal(found, model(IDS).logits.float())
    after = model.state_dict()
    assert all(after[name].dtype == x.dtype and torch.equal(after[name], x) for name, x in before.items())


@pytest.mark.parametrize("family", ["gpt_oss", "deepseek_v2"])
@torch.no_grad()
def test_routing_changes_nothing_where_experts_are_equal(family: str) -> None:
    model = build(GEOMETRIES[family], TINY, "cpu", torch.float32)

    def off() -> float:
        """How far the logits move when every token goes to other experts."""
        before = model(IDS).logits
        for name, parameter in model.named_parameters():
            if name.endswith(("router.weight", "mlp.gate.weight")):
                parameter.copy_(parameter.flip(0))
        return float((model(IDS).logits - before).norm() / before.norm())

    assert off() > 1e-3
    assert equal_experts(model)
    assert off() < 1e-6


@torch.no_grad()
def test_a_steady_window_is_transformers_window_at_one_address() -> None:
    """Also where the host no longer counts, as in a replayed graph."""
    sliding = {"layer_types": ["sliding_attention"] * 2}
    geometry = replace(GEOMETRIES["gpt_oss"], tiny=GEOMETRIES["gpt_oss"].tiny | sliding)
    model = build(geometry, TINY, "cpu", torch.float32)
    caches = steady_cache(model.config), DynamicCache(config=model.config)
    writers = []
    for cache in caches:
        model(IDS, **given_cache(model, cache), use_cache=True)
        writers.append(Writer(model, cache, torch.full((1, 1), 5), torch.full((1, 1), 40)))
        writers[-1].step()
    layers = caches[0].layers
    addresses, counted = [layer.keys.data_ptr() for layer in layers], layers[0].cumulative_length
    for _ in range(12):
        ours, stock = (writer.step() for writer in writers)
        assert torch.equal(ours, stock)
        assert [layer.keys.data_ptr() for layer in layers] == addresses
        for layer in layers:
            layer.cumulative_length = counted
