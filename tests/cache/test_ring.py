"""A bounded cache while single tokens are read: fixed buffers, the same attention, and back to order for a chunk."""

from __future__ import annotations

import copy
from typing import Any

import pytest
import torch
from transformers import DynamicCache

from hf_longctx import LMInfinite, StreamingLLM
from hf_longctx.cache import SinkWindowLayer
from tests.tiny import left_padded, logits_of, text, tiny

METHODS = {"lm_infinite": LMInfinite(n_global=2, n_local=6), "streaming_llm": StreamingLLM(n_sink=2, window=6)}


def read(model: Any, ids: torch.Tensor, cuts: list[int], cache: DynamicCache, start: int = 0) -> torch.Tensor:
    """Logits of `ids` read in pieces of these lengths."""
    logits = []
    for piece in ids.split(cuts, dim=1):
        pos = torch.arange(start, start + piece.shape[1])[None]
        logits.append(logits_of(model, piece, past_key_values=cache, position_ids=pos, use_cache=True))
        start += piece.shape[1]
    return torch.cat(logits, 1)


@pytest.mark.parametrize("method", METHODS.values(), ids=METHODS)
@pytest.mark.parametrize("cuts", [[3] + [1] * 27, [20] + [1] * 10, [1] * 30, [9, 1, 1, 9, 1, 1, 1, 7], [4, 1, 25]])
def test_tokens_one_by_one_are_read_as_in_one_piece(method: Any, cuts: list[int]) -> None:
    model, ids = tiny(), text(2, 30)
    with method.on(model):
        truth = logits_of(model, ids, use_cache=False)
        assert torch.allclose(read(model, ids, cuts, DynamicCache(config=model.config)), truth, atol=2e-5)


@pytest.mark.parametrize("method", METHODS.values(), ids=METHODS)
def test_addresses_stay_and_nothing_grows(method: Any) -> None:
    model, ids = tiny(), text(2, 40)
    cache = DynamicCache(config=model.config)
    with method.on(model):
        read(model, ids[:, :5], [5], cache)
        read(model, ids[:, 5:6], [1], cache, 5)
        layers: list[Any] = cache.layers
        before = [(layer.keys.data_ptr(), layer.values.data_ptr(), layer.nbytes()) for layer in layers]
        assert len({id(layer.ring) for layer in layers}) == 1
        read(model, ids[:, 6:], [1] * 34, cache, 6)
        assert before == [(layer.keys.data_ptr(), layer.values.data_ptr(), layer.nbytes()) for layer in layers]
        assert cache.get_seq_length() == 40


def test_a_short_text_gets_a_small_ring_that_grows_up_to_the_window(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("hf_longctx.cache.rolling.ROOM", 4)
    model, ids, sizes = tiny(), text(2, 60), []
    with LMInfinite(n_global=2, n_local=20).on(model):
        truth = logits_of(model, ids, use_cache=False)
        cache = DynamicCache(config=model.config)
        logits = [read(model, ids[:, :3], [3], cache)]
        for i in range(3, 60):
            logits.append(read(model, ids[:, i : i + 1], [1], cache, i))
            layer: Any = cache.layers[0]
            sizes.append(layer.ring.size)
        assert torch.allclose(torch.cat(logits, 1), truth, atol=2e-5)
    assert sorted(set(sizes)) == [6, 12, 20]


def test_a_row_without_all_its_first_tokens_waits() -> None:
    model = tiny()
    ids, mask = left_padded([text(1, 9)[0], text(1, 1, seed=1)[0]])
    with METHODS["lm_infinite"].on(model):
        out = model.generate(ids, attention_mask=mask, max_new_tokens=12, do_sample=False)
        alone = model.generate(ids[1:, -1:], max_new_tokens=12, do_sample=False)
    assert torch.equal(out[1, -12:], alone[0, -12:])


def test_a_copied_cache_goes_its_own_way() -> None:
    model, ids = tiny(), text(1, 20)
    with METHODS["lm_infinite"].on(model):
        truth = logits_of(model, ids, use_cache=False)
        cache = DynamicCache(config=model.config)
        read(model, ids[:, :12], [10, 1, 1], cache)
        twin = copy.deepcopy(cache)
        read(model, text(1, 8, seed=5), [1] * 8, cache, 12)
        assert torch.allclose(read(model, ids[:, 12:], [1] * 8, twin, 12), truth[:, 12:], atol=2e-5)


def test_beams_move_rows_in_place() -> None:
    model, ids = tiny(), text(3, 12)
    swap = torch.tensor([2, 2, 0])
    with METHODS["lm_infinite"].on(model):
        cache = DynamicCache(config=model.config)
        read(model, ids, [10, 1, 1], cache)
        layer: Any = cache.layers[0]
        address = layer.keys.data_ptr()
        cache.reorder_cache(swap)
        assert isinstance(layer, SinkWindowLayer)
        assert layer.keys.data_ptr() == address
        more = text(3, 5, seed=7)
        ours = read(model, more, [1] * 5, cache, 12)
        truth = logits_of(model, torch.cat([ids[swap], more], 1), use_cache=False)[:, 12:]
        assert torch.allclose(ours, truth, atol=2e-5)
        cache.batch_repeat_interleave(2)
        again = read(model, more.repeat_interleave(2, 0), [1] * 5, cache, 17)
        both = torch.cat([ids[swap], more, more], 1).repeat_interleave(2, 0)
        assert torch.allclose(again, logits_of(model, both, use_cache=False)[:, 17:], atol=2e-5)
