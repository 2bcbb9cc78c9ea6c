"""Positions decided anew on models whose own rotary embedding is scaled: yarn, llama3, longrope, a theta per layer."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from transformers import DynamicCache

from hf_longctx import LMInfinite, StreamingLLM
from tests.contract.registry import close, differs, same
from tests.reference.model import by_brute_force
from tests.rope.cases import scaled_by_hand
from tests.tiny import FAMILIES, MORE_FAMILIES, greedy_uncached, logits_of, text, tiny

IDS = text(1, 20)
METHODS: dict[str, Any] = {
    "lm_infinite": LMInfinite(n_global=2, n_local=6),
    "lm_infinite_top3": LMInfinite(n_global=2, n_local=6, top_k=3, top_k_from_layer=1),
    "streaming_llm": StreamingLLM(n_sink=2, window=6),
}
# yarn_all has an attention factor of its own
SCALINGS = ("linear", "ntk", "yarn", "yarn_all", "llama3", "longrope_static", "giraffe_scaled")


@pytest.mark.parametrize("row", SCALINGS)
@pytest.mark.parametrize("family", [*FAMILIES, *MORE_FAMILIES])
@pytest.mark.parametrize("name", METHODS)
def test_a_model_that_is_scaled_already_equals_brute_force(name: str, family: str, row: str) -> None:
    model, method = scaled_by_hand(family, row), METHODS[name]
    stock = logits_of(model, IDS)
    with by_brute_force(model, method):
        truth = logits_of(model, IDS, use_cache=False)
    with method.on(model):
        ours = logits_of(model, IDS)
        close(ours, truth)
        cache = DynamicCache(config=model.config)
        parts = [logits_of(model, part, past_key_values=cache) for part in IDS.split(7, 1)]
        close(torch.cat(parts, 1), truth, "in chunks")
        generated = model.generate(IDS, max_new_tokens=4, do_sample=False)
        same(generated, greedy_uncached(model, IDS, 4))
    differs(ours, stock)
    same(logits_of(model, IDS), stock, "after undo")


@pytest.mark.parametrize("name", METHODS)
def test_every_kind_of_layer_keeps_its_own_theta_and_scaling(name: str) -> None:
    # Gemma3 as it is published: a local theta for the window, a global one that is scaled
    rope = {
        "sliding_attention": {"rope_type": "default", "rope_theta": 50.0},
        "full_attention": {"rope_type": "linear", "rope_theta": 1e3, "factor": 8.0},
    }
    model, method = tiny("gemma3", rope_parameters=rope, num_hidden_layers=3), METHODS[name]
    with by_brute_force(model, method):
        truth = logits_of(model, IDS, use_cache=False)
    with method.on(model):
        close(logits_of(model, IDS), truth)
