"""Continuous batching: stock where the model's cache is transformers' own, refused with what to do where it is not."""

from __future__ import annotations

from typing import Any

import pytest
from transformers import ContinuousBatchingConfig, GenerationConfig

import hf_longctx
from hf_longctx import CodeLookup, LMInfinite, RopeScaling, StreamingLLM, shared_prefix
from tests.contract.registry import fingerprint, same
from tests.tiny import text, tiny

IDS = text(1, 30)
SETTINGS: dict[str, Any] = {"max_new_tokens": 6, "do_sample": False}


def batched(model: Any) -> list[list[int]]:
    config = GenerationConfig(**SETTINGS, eos_token_id=-1, pad_token_id=0)
    small = ContinuousBatchingConfig(num_blocks=8, max_batch_tokens=64)  # else most of the memory there is
    return [found.generated_tokens for found in model.generate_batch([IDS[0].tolist()], config, small).values()]


@pytest.mark.parametrize(
    "method", [LMInfinite(n_global=2, n_local=6), StreamingLLM(n_sink=2, window=6), CodeLookup(n_global=2, n_local=6)]
)
def test_a_cache_of_its_own_is_refused_by_name_and_the_model_goes_on(method: Any) -> None:
    model = tiny()
    stock = model.generate(IDS, **SETTINGS)
    patch = method.apply(model)
    before, expected = fingerprint(model), model.generate(IDS, **SETTINGS)
    for _ in range(2):
        with pytest.raises(ValueError, match=rf"generate_batch .*{type(method).__name__}.*model.generate.*undo"):
            batched(model)
    assert fingerprint(model) == before
    same(model.generate(IDS, **SETTINGS), expected)
    patch.undo()
    assert batched(model) == [stock[0, 30:].tolist()]


def test_after_a_shared_prefix_it_is_refused() -> None:
    model = tiny()
    with shared_prefix(model, IDS[0, :10]) as prefix:
        with pytest.raises(ValueError, match=r"shared prefix keeps a cache of its own.*leave the block"):
            batched(model)
        prefix.generate(IDS[:, 10:], **SETTINGS)
    assert batched(model) == [model.generate(IDS, **SETTINGS)[0, 30:].tolist()]


def test_scaled_frequencies_are_served() -> None:
    model = tiny()
    stock = model.generate(IDS, **SETTINGS)
    with RopeScaling(type="linear", factor=4.0).on(model):
        expected = model.generate(IDS, **SETTINGS)[0, 30:].tolist()
        assert expected != stock[0, 30:].tolist()
        assert batched(model) == [expected]
    assert hf_longctx.applied(model) == []
