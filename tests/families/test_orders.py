"""Layers of one model that rotate in different orders of dims: each is read in its own."""

from __future__ import annotations

import copy
from typing import Any

import torch

from hf_longctx import LMInfinite, PositionFree, StreamingLLM
from hf_longctx.anatomy import attention_layers, find_decoder
from hf_longctx.attention.state import known_of
from tests.contract.registry import close
from tests.families.census.building import build
from tests.families.test_families import SETTINGS
from tests.tiny import logits_of, text

IDS = text(2, 24)


def mixed() -> Any:
    """A DeepSeek-V3 of which every other layer rotates halves, not neighbours."""
    model = build("deepseek_v3")
    for module in attention_layers(find_decoder(model))[1::2]:
        config: Any = copy.copy(module.config)
        config.rope_interleave = not config.rope_interleave
        module.config = config
    return model


def test_layers_that_differ_in_the_order_of_their_dims_are_right_side_by_side() -> None:
    model = mixed()
    stock = logits_of(model, IDS)
    assert not torch.equal(stock, logits_of(build("deepseek_v3"), IDS))
    with PositionFree().on(model):
        close(logits_of(model, IDS), stock, "un-rotated")
        found = [next(iter(known_of(module).values())) for module in attention_layers(find_decoder(model))]
        assert len({one.layout.order for one in found if one.layout is not None}) == 2
    for method in (LMInfinite(n_global=2, n_local=64), StreamingLLM(n_sink=2, window=64)):
        with method.on(model):
            close(logits_of(model, IDS), stock, "within the window")
    with LMInfinite(n_global=2, n_local=6).on(model):  # keys alone are moved to the ceiling, in their layer's order
        out = model.generate(IDS[:, :14], **SETTINGS)
        whole = logits_of(model, out.sequences, use_cache=False)[:, 13:-1]
        close(torch.stack(out.logits, 1), whole, "cached")
