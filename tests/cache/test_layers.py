"""The un-rotated cache layers: what they keep, in constant memory, and what happens to rows."""

from __future__ import annotations

import copy
from typing import Any

import pytest
import torch
from torch import Tensor
from transformers import DynamicCache

from hf_longctx import CodeLookup, LMInfinite, PositionFree
from hf_longctx.cache import FullLayer, KeyValues, SinkWindowLayer
from tests.contract.registry import close
from tests.tiny import left_padded, logits_of, text, tiny

OWNER = PositionFree()


def feed(layer: Any, pos: Tensor) -> KeyValues:
    """Push tokens whose keys are their position + 1 (0 for padding) and values the negative of it."""
    key = (pos + 1).float()[:, None, :, None].expand(-1, 2, -1, 4)
    layer.open()
    layer.push(pos, bool((pos < 0).any()))
    k, v = layer.update(key, -key)
    return KeyValues(k, v, layer.readable_pos)


def rows(slots: KeyValues) -> list[list[int]]:
    """The real positions of every row, in order; keys and values must agree with them."""
    found = []
    for b, row in enumerate(slots.pos.tolist()):
        for s, p in enumerate(row):
            assert slots.k[b, :, s].eq(p + 1).all()
            assert slots.v[b, :, s].eq(-(p + 1)).all()
        found.append([p for p in row if p >= 0])
    return found


def test_bounded_keeps_the_first_and_the_last() -> None:
    layer = SinkWindowLayer(OWNER, n_first=2, n_last=3)
    for start, end in ((0, 1), (1, 2), (2, 9), (9, 10), (10, 12)):
        readable = feed(layer, torch.arange(start, end)[None])
        assert rows(readable) == [list(range(max(0, start - 3), end))]
        assert rows(layer.sinks) == [list(range(min(2, end)))]
        assert rows(layer.slots) == [list(range(max(0, end - 3), end))]
        assert layer.get_seq_length() == end


@pytest.mark.parametrize("chunk", [1, 2, 4, 7, 20])
def test_positions_are_right_under_padding(chunk: int) -> None:
    """Pads on the left, in the middle, and whole chunks of them: each row keeps its own first and last."""
    pos = torch.tensor(
        [
            [-1, -1, -1, -1, -1, -1, -1, 0, 1, 2, 3, 4, -1, -1, 5, 6, 7, 8, 9, 10],
            [0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, -1, -1, -1, -1, -1, 14],
            [-1] * 20,
        ]
    )
    layer = SinkWindowLayer(OWNER, n_first=3, n_last=4)
    for part in pos.split(chunk, 1):
        before = rows(layer.slots) if layer.is_initialized else [[], [], []]
        readable = rows(feed(layer, part))
        seen = [[p for p in row if p >= 0] for row in pos[:, : layer.get_seq_length()].tolist()]
        new = [[p for p in row if p >= 0] for row in part.tolist()]
        assert readable == [old + add for old, add in zip(before, new, strict=True)]
        assert rows(layer.slots) == [row[-4:] for row in seen]
        assert rows(layer.sinks) == [row[:3] for row in seen]


@pytest.mark.parametrize("n_first", [0, 5])
@pytest.mark.parametrize("n_last", [0, 1, 8])
def test_bounded_memory_is_constant(n_first: int, n_last: int) -> None:
    layer = SinkWindowLayer(OWNER, n_first, n_last)
    sizes = []
    for start in range(0, 200, 20):
        feed(layer, torch.arange(start, start + 20)[None])
        sizes.append(layer.nbytes())
        storage = [layer.keys, layer.values, layer.pos, layer.column]
        storage += [layer.sinks.k, layer.sinks.v, layer.sinks.pos, layer.sinks.column]
        held = sum(t.untyped_storage().nbytes() for t in storage)
        assert held == layer.nbytes(), "a slice keeps a larger tensor alive"
    assert len(set(sizes)) == 1
    assert sizes[0] == (n_first + n_last) * (2 * 4 * 4 * 2 + 2 * 8)


def test_lm_infinite_keeps_constant_bytes_however_long_and_padded() -> None:
    model = tiny()
    LMInfinite(n_global=3, n_local=8).apply(model)
    for mask in (None, torch.ones(2, 400, dtype=torch.long).index_fill(1, torch.arange(30), 0)):
        ids, cache, sizes = text(2, 400), DynamicCache(), []
        for start in range(0, 400, 40):
            so_far = None if mask is None else mask[:, : start + 40]
            logits_of(model, ids[:, start : start + 40], past_key_values=cache, attention_mask=so_far)
            sizes.append(sum(layer.nbytes() for layer in cache.layers))
            assert all(layer.readable_pos is None for layer in cache.layers), "what was read is let go"
        assert len(set(sizes[1:])) == 1
        assert cache.get_seq_length() == 400


def test_growing_keeps_everything() -> None:
    layer = FullLayer(OWNER)
    for start in (0, 5, 6):
        readable = feed(layer, torch.arange(start, start + (5 if start == 0 else 1))[None])
    assert rows(readable) == rows(layer.slots) == [list(range(7))]


def test_keys_on_host_gives_the_same_logits() -> None:
    model, ids = tiny(), text(1, 40)
    settings = {"n_global": 2, "n_local": 6, "top_k": 3, "top_k_from_layer": 0}
    outputs = []
    for on_host in (False, True):
        with LMInfinite(**settings, keys_on_host=on_host).on(model):
            cache = DynamicCache()
            outputs.append(torch.cat([logits_of(model, c, past_key_values=cache) for c in ids.split(7, 1)], 1))
    close(outputs[0], outputs[1])  # the window is attended to by itself: sums in another order


METHODS = {
    "bounded": LMInfinite(n_global=2, n_local=6),
    "retrieving": CodeLookup(n_global=2, n_local=6, top_k=3, shortlist=4),
    "growing": LMInfinite(n_global=2, n_local=6, top_k=3, top_k_from_layer=1),
}


@pytest.mark.parametrize("method", METHODS)
def test_rows_can_be_reordered_repeated_and_selected(method: str) -> None:
    model, more = tiny(), text(3, 4, seed=8)
    METHODS[method].apply(model)
    texts = [text(1, n, seed=n)[0] for n in (8, 15, 21)]
    ids, mask = left_padded(texts)

    def after(order: list[int], change: Any) -> None:
        cache = DynamicCache()
        logits_of(model, ids, attention_mask=mask, past_key_values=cache)
        change(cache)
        tokens = more[torch.tensor(order) % 3]
        both = torch.cat([mask[order], torch.ones(len(order), 4, dtype=torch.long)], 1)
        got = logits_of(model, tokens, attention_mask=both, past_key_values=cache)
        for i, row in enumerate(order):
            alone = torch.cat([texts[row], tokens[i]])[None]
            close(got[i], logits_of(model, alone)[0, -4:], f"row {i} of {order}")

    after([2, 0, 0], lambda cache: cache.reorder_cache(torch.tensor([2, 0, 0])))
    after([0, 0, 1, 1, 2, 2], lambda cache: cache.batch_repeat_interleave(2))
    after([1, 2], lambda cache: cache.batch_select_indices(torch.tensor([1, 2])))


@pytest.mark.parametrize("method", METHODS)
def test_reset_and_deepcopy(method: str) -> None:
    model, cache = tiny(), DynamicCache()
    METHODS[method].apply(model)
    first, more = text(2, 20), text(2, 5, seed=3)
    ids, mask = left_padded([first[0], first[1, :11]])
    logits_of(model, ids, attention_mask=mask, past_key_values=cache)
    twin = copy.deepcopy(cache)
    cache.reset()
    assert cache.get_seq_length() == 0
    logits_of(model, first, past_key_values=cache)
    expected = logits_of(model, torch.cat([first, more], 1))[:, -5:]
    close(logits_of(model, more, past_key_values=cache), expected, "after reset")
    assert twin.get_seq_length() == 20
    full = torch.cat([mask, torch.ones_like(more)], 1)
    got = logits_of(model, more, attention_mask=full, past_key_values=twin)
    close(got[1], logits_of(model, torch.cat([first[1, :11], more[1]])[None])[0, -5:], "the copy")


def test_cropping_is_an_error() -> None:
    layer = SinkWindowLayer(OWNER, 2, 3)
    feed(layer, torch.arange(9)[None])
    layer.crop(0)
    with pytest.raises(RuntimeError, match="cannot be cropped"):
        layer.crop(1)
