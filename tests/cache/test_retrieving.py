"""The layer that keeps a window to attend to and every token to look up: what it keeps, returns, and refuses."""

from __future__ import annotations

import dataclasses
from typing import Any

import pytest
import torch
from transformers import DynamicCache

from hf_longctx import CodeLookup, InfLLM, LMInfinite, stream
from hf_longctx.cache import RetrievingLayer
from hf_longctx.cache.stock import has_fixed_buffers, is_bounded
from hf_longctx.editing.edit import edit
from tests.contract.registry import close, differs
from tests.tiny import logits_of, text, tiny

METHOD = CodeLookup(n_global=2, n_local=16, top_k=3, shortlist=8)


def test_attention_gets_a_window_and_all_tokens_are_in_the_store() -> None:
    model, cache, ids = tiny(), DynamicCache(), text(2, 300)
    METHOD.apply(model)
    for part in ids.split(100, 1):
        logits_of(model, part, past_key_values=cache)
    for layer in cache.layers:
        assert isinstance(layer, RetrievingLayer)
        assert layer.slots.pos.shape == (2, 15)
        assert layer.everything is not None
        for b, row in enumerate(layer.everything.rows):
            assert row.pos.cut(0, row.filled).tolist() == [list(range(300))]
            assert torch.equal(row.k.cut(285, 300), layer.slots.k[b])
            assert torch.equal(row.v.cut(285, 300), layer.slots.v[b])
        assert layer.nbytes() > layer.everything.nbytes() > 2 * 300 * 2 * 8 * 4 * 2
        assert not is_bounded(layer)
    assert not has_fixed_buffers(cache)


def test_rows_that_are_dropped_are_let_go() -> None:
    model, cache = tiny(), DynamicCache()
    METHOD.apply(model)
    logits_of(model, text(4, 200), past_key_values=cache)
    before = cache.layers[0].nbytes()
    cache.batch_select_indices(torch.tensor([1]))
    assert cache.layers[0].nbytes() <= before / 4 + 64
    cache.batch_repeat_interleave(4)
    assert cache.layers[0].nbytes() <= before


def test_a_text_within_the_window_can_be_edited_and_goes_on() -> None:
    model, cache = tiny(), DynamicCache()
    METHOD.apply(model)
    old = text(1, 12)[0].tolist()
    new = [*old[:4], 9, *old[6:]]
    logits_of(model, torch.tensor([old]), past_key_values=cache)
    edit(model, cache, old, new, repair=100)
    more = text(1, 40, seed=4)
    tail = torch.cat([torch.tensor([new[-1:]]), more], 1)
    got = torch.cat([logits_of(model, part, past_key_values=cache) for part in tail.split([1, 20, 1, 19], 1)], 1)
    whole = torch.cat([torch.tensor([new]), more], 1)
    close(got, logits_of(model, whole, use_cache=False)[:, len(new) - 1 :])
    with pytest.raises(ValueError, match="new tokens cannot attend to evicted keys"):
        edit(model, cache, whole[0].tolist(), whole[0, 1:].tolist())


@pytest.mark.parametrize("single", [False, True])
def test_a_later_mask_hides_and_shows_tokens_that_only_the_store_holds(single: bool) -> None:
    model, cache, ids = tiny(num_hidden_layers=1), DynamicCache(), text(2, 60)
    dataclasses.replace(METHOD, gate=None).apply(model)
    hidden, seen = torch.ones(2, 60, dtype=torch.long), torch.ones(2, 60, dtype=torch.long)
    hidden[0, 5:28] = 0
    pos = torch.arange(60).expand(2, -1)
    logits_of(model, ids[:, :45], past_key_values=cache)
    for start, stop, mask in ((45, 50, hidden), (50, 55, seen), (55, 60, hidden)):
        parts = ids[:, start:stop].split(1 if single else 5, 1)
        ends = range(start + parts[0].shape[1], stop + 1, parts[0].shape[1])
        got = [
            logits_of(model, part, attention_mask=mask[:, :end], past_key_values=cache)
            for part, end in zip(parts, ends, strict=True)
        ]
        full = logits_of(model, ids, attention_mask=mask, position_ids=pos, use_cache=False)
        close(torch.cat(got, 1), full[:, start:stop])
    differs(full, logits_of(model, ids, use_cache=False))


def test_a_stream_refuses_what_grows_unless_it_is_told_to() -> None:
    model = tiny()
    METHOD.apply(model)
    with pytest.raises(ValueError, match=r"CodeLookup\(.* keep every key, so memory and time per token would grow"):
        stream(model, text(1, 40)[0])
    reader = stream(model, text(1, 40)[0], chunk=16, bounded=False)
    close(reader.logits, logits_of(model, text(1, 40), use_cache=False)[0, -1])


@pytest.mark.parametrize(
    ("method", "setting"),
    [
        (METHOD, "on_host=True"),
        (LMInfinite(n_local=8, top_k=2, top_k_from_layer=0), "keys_on_host=True"),
        (LMInfinite(n_local=8, top_k=2, top_k_from_layer=0, keys_on_host=True), None),
        (InfLLM(n_local=8, block_size=4), None),
    ],
    ids=repr,
)
def test_the_refusal_names_host_memory_where_a_method_has_it(method: Any, setting: str | None) -> None:
    model = tiny()
    method.apply(model)
    wanted = rf"pass bounded=False \(and {setting} to the method" if setting else r"pass bounded=False\.$"
    with pytest.raises(ValueError, match=wanted):
        stream(model, text(1, 40)[0])


def test_single_tokens_of_a_text_that_outgrows_a_piece(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("hf_longctx.cache.growing.PIECE", 16)
    monkeypatch.setattr("hf_longctx.cache.growing.LEAST", 4)
    model, cache, ids = tiny(), DynamicCache(), text(2, 60)
    METHOD.apply(model)
    steps = [logits_of(model, part, past_key_values=cache) for part in ids.split([20, *[1] * 15, 25], 1)]
    close(torch.cat(steps, 1), logits_of(model, ids, use_cache=False))
