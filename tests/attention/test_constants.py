"""Rotations that are the same in every forward are made once, and again when the frequencies are others."""

from __future__ import annotations

import copy
from typing import Any
from unittest import mock

import pytest
import torch
from transformers import DynamicCache

from hf_longctx import LMInfinite, StreamingLLM
from hf_longctx.attention import inputs
from hf_longctx.attention.constants import Constants
from hf_longctx.attention.state import STATE
from tests.tiny import logits_of, text, tiny

METHOD = LMInfinite(n_global=2, n_local=6)


def state_of(model: Any) -> Any:
    return vars(model.model)[STATE]


def test_a_step_asks_the_rotary_embedding_no_more_than_the_model_itself_does() -> None:
    model, ids = tiny(), text(1, 30)
    rotary = model.model.rotary_emb
    with METHOD.on(model):
        cache: Any = DynamicCache()
        logits_of(model, ids[:, :20], past_key_values=cache)
        logits_of(model, ids[:, 20:21], past_key_values=cache)
        with mock.patch.object(rotary, "forward", wraps=rotary.forward) as asked:
            logits_of(model, ids[:, 21:22], past_key_values=cache)
    assert asked.call_count <= 2, "the model's own call, and a check of it that a GPU leaves out"


def test_other_frequencies_are_seen_in_place_and_in_another_buffer() -> None:
    ids = text(1, 30)
    for method in (METHOD, StreamingLLM(n_sink=2, window=6)):
        for in_place in (True, False):
            model = tiny()
            with method.on(model):
                cache: Any = DynamicCache()
                logits_of(model, ids[:, :20], past_key_values=cache)
                logits_of(model, ids[:, 20:21], past_key_values=cache)  # whose rotations are kept
                before = state_of(model).constants.all()
                rotary = model.model.rotary_emb
                if in_place:
                    rotary.inv_freq.mul_(0.5)
                else:
                    rotary.register_buffer("inv_freq", rotary.inv_freq * 0.5, persistent=False)
                truth = logits_of(model, ids, use_cache=False)
                empty: Any = DynamicCache()
                parts = [logits_of(model, part, past_key_values=empty) for part in ids.split([20] + [1] * 10, 1)]
                torch.testing.assert_close(torch.cat(parts, 1), truth, atol=2e-5, rtol=1e-5)
                assert before
                assert not any(one is other for one in before for other in state_of(model).constants.all())


@pytest.mark.parametrize("window", [inputs.TABLE, inputs.TABLE + 1, 2**53 - 1])
@pytest.mark.parametrize(("method", "field"), [(LMInfinite, "n_local"), (StreamingLLM, "window")])
def test_a_window_that_is_far_larger_than_the_text_makes_no_table_of_it(method: Any, field: str, window: int) -> None:
    """Steps are those of the stock model all the same."""
    model, ids = tiny(), text(1, 30)
    truth = logits_of(model, ids, use_cache=False)
    with method(**{field: window}).on(model):
        cache: Any = DynamicCache()
        parts = [logits_of(model, part, past_key_values=cache) for part in ids.split([20] + [1] * 10, 1)]
        torch.testing.assert_close(torch.cat(parts, 1), truth, atol=2e-5, rtol=1e-5)
        kept = max((one.cos.shape[-2] for one in state_of(model).constants.all()), default=0)
        assert kept == window if window == inputs.TABLE else kept <= 1


def test_copies_begin_without_and_inference_mode_leaves_nothing_that_cannot_be_learned_from() -> None:
    model, ids = tiny(), text(1, 30)
    with METHOD.on(model):
        with torch.inference_mode():
            cache: Any = DynamicCache()
            for part in ids.split([20] + [1] * 10, 1):
                model(part, past_key_values=cache, use_cache=True)
        kept = state_of(model).constants
        assert kept.all()
        assert not any(x.is_inference() for one in kept.all() for x in (one.cos, one.sin))
        assert copy.deepcopy(kept).all() == []
        assert isinstance(copy.deepcopy(kept), Constants)
        model(ids, labels=ids).loss.backward()
