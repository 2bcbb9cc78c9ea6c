"""Keys and values to look up in host memory: what is read is what a device's own memory gives, and room is checked."""

# B rows, G heads, D head dim
from __future__ import annotations

import copy
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import DynamicCache

from hf_longctx import CodeLookup, LMInfinite
from hf_longctx.cache import KeyValues, RetrievingLayer, Store, host_room
from hf_longctx.cache.growing import Growing
from hf_longctx.cache.store_row import StoreRow
from hf_longctx.ops.host import free_host_bytes, give_back_pinned
from tests.contract.registry import same
from tests.tiny import left_padded, logits_of, text, tiny

from .test_store import FIRST, G, N, columns, equal, tokens

SETTINGS: dict[str, Any] = {"n_global": 2, "n_local": 16, "top_k": 3}
METHODS = {
    "signs": CodeLookup(**SETTINGS, shortlist=8, on_host=True),
    "keys": CodeLookup(**SETTINGS, by="keys", on_host=True),
    "top_k": LMInfinite(**SETTINGS, top_k_from_layer=0, keys_on_host=True),
}


@pytest.fixture(autouse=True)
def _small_pages(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("hf_longctx.cache.growing.PIECE", 16)
    monkeypatch.setattr("hf_longctx.cache.growing.LEAST", 4)
    monkeypatch.setattr(CodeLookup, "check", lambda self, decoder: None)  # as if there was a GPU


@pytest.mark.parametrize("method", METHODS)
def test_logits_are_bit_for_bit_those_of_a_store_on_the_device(method: str, monkeypatch: pytest.MonkeyPatch) -> None:
    model = tiny()
    ids, mask = left_padded([text(1, n, seed=n)[0] for n in (70, 31)])
    layer, found = RetrievingLayer, []

    def read() -> tuple[torch.Tensor, DynamicCache]:
        cache, steps, start = DynamicCache(), [], 0
        for size in (40, 5, 1, 1, 1, 22):
            stop = start + size
            steps.append(logits_of(model, ids[:, start:stop], attention_mask=mask[:, :stop], past_key_values=cache))
            start = stop
            if size == 5:
                cache = copy.deepcopy(cache)
        return torch.cat(steps, 1), cache

    with METHODS[method].on(model):
        found.append(read()[0])
        stores = [held.everything for held in read()[1].layers]
        assert all(row.on_host and row.k.on_host and not row.words.on_host for store in stores for row in store.rows)

        def on_device(*args: Any, on_host: int = 0, **more: Any) -> RetrievingLayer:
            return layer(*args[:4], **more)

        for place in ("code_lookup", "lm_infinite"):
            monkeypatch.setattr(f"hf_longctx.methods.{place}.RetrievingLayer", on_device)
        found.append(read()[0])
    same(found[0], found[1])


@pytest.mark.parametrize("size", [1, 5, 16, 37])
def test_a_store_on_the_host_holds_what_one_on_the_device_holds(size: int) -> None:
    text = tokens(2)
    stores = [Store([StoreRow(FIRST, on_host=on_host) for _ in range(2)]) for on_host in (False, True)]
    for store in stores:
        for start in range(0, N, size):
            store.append(columns(text, start, min(start + size, N)), False)
        store.select([1, 0, 1])
    for one, other in zip(*(store.rows for store in stores), strict=True):
        equal(one, other)
    assert {piece.shape[1] for row in stores[1].rows for piece in row.k.pieces} == {16}, "whole pages"
    for size in (3, 200):  # few are gathered where they are; for many, the pages visit
        table = torch.randint(0, N, (3, G, 2, size), generator=torch.Generator().manual_seed(size))
        for mine, its in zip(*(store.take(table) for store in stores), strict=True):
            same(mine, its)


def test_what_does_not_fit_is_said_with_both_figures_before_anything_changes(monkeypatch: pytest.MonkeyPatch) -> None:
    model, cache, ids = tiny(), DynamicCache(), text(2, 60)
    page = 2 * 2**10  # of 2 heads, 16 tokens, 8 numbers: 1 KiB of keys and of values
    with METHODS["signs"].on(model):
        monkeypatch.setattr(host_room, "free_host_bytes", lambda: 2 * 2 * page * 2)
        expected = logits_of(model, ids[:, :20], past_key_values=cache)
        before = [copy.deepcopy(vars(layer)) for layer in cache.layers]
        monkeypatch.setattr(host_room, "free_host_bytes", lambda: 2 * 2 * page)
        with pytest.raises(ValueError, match=r"30 more tokens of every row need 16 KiB of it, and 8 KiB are free. A "):
            logits_of(model, ids[:, 20:50], past_key_values=cache)
        for layer, held in zip(cache.layers, before, strict=True):
            assert layer.seen == held["seen"] == 20
            assert [row.filled for row in layer.everything.rows] == [20, 20]
            same(layer.keys, held["keys"])
        got = logits_of(model, ids[:, 20:40], past_key_values=cache)
        with pytest.raises(ValueError, match=r"A text of 16 tokens fits. Read a shorter one, or fewer rows at once"):
            logits_of(model, ids, past_key_values=DynamicCache())
        monkeypatch.setattr(host_room, "free_host_bytes", lambda: None)
        same(got, logits_of(model, ids[:, 20:40], past_key_values=_read(model, ids[:, :20])))
        same(expected, logits_of(model, ids[:, :20], past_key_values=DynamicCache()))


def test_memory_that_torch_keeps_of_an_earlier_text_is_given_back_before_a_text_is_refused(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    free, given = [2**10], list[int]()

    def give_back() -> None:
        given.append(1)
        free[0] = 2**20

    monkeypatch.setattr(host_room, "free_host_bytes", lambda: free[0])
    monkeypatch.setattr(host_room, "give_back_pinned", give_back)
    model = tiny()
    with METHODS["signs"].on(model):
        logits_of(model, text(2, 40), past_key_values=DynamicCache())
        assert given == [1]
        free[0], calls = 0, list[int]()
        monkeypatch.setattr(host_room, "give_back_pinned", lambda: calls.append(1))
        with pytest.raises(ValueError, match="are free"):
            logits_of(model, text(2, 40), past_key_values=DynamicCache())
        assert calls == [1]


def test_pinned_memory_is_given_back_where_torch_can(monkeypatch: pytest.MonkeyPatch) -> None:
    calls = []
    monkeypatch.setattr(torch.accelerator, "empty_host_cache", lambda: calls.append("new"), raising=False)
    monkeypatch.setattr(torch._C, "_host_emptyCache", lambda: calls.append("old"), raising=False)
    give_back_pinned()
    assert calls == [], "there is no GPU"
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    give_back_pinned()
    monkeypatch.delattr(torch.accelerator, "empty_host_cache")
    give_back_pinned()
    monkeypatch.delattr(torch._C, "_host_emptyCache")
    give_back_pinned()
    assert calls == ["new", "old"]


def _read(model: Any, ids: torch.Tensor) -> DynamicCache:
    cache = DynamicCache()
    logits_of(model, ids, past_key_values=cache)
    return cache


def test_an_allocation_that_fails_half_way_leaves_the_cache_as_before(monkeypatch: pytest.MonkeyPatch) -> None:
    model, cache, ids = tiny(), DynamicCache(), text(1, 80)
    allocate, calls = Growing._empty, [0]

    def fails(self: Any, *args: Any) -> Any:
        calls[0] += 1
        if calls[0] == 6:
            raise RuntimeError("CUDA error: out of memory")
        return allocate(self, *args)

    with METHODS["keys"].on(model):
        logits_of(model, ids[:, :20], past_key_values=cache)
        with monkeypatch.context() as broken:
            broken.setattr(Growing, "_empty", fails)
            with pytest.raises(RuntimeError, match="out of memory"):
                logits_of(model, ids[:, 20:70], past_key_values=cache)
        assert calls[0] == 6
        assert cache.get_seq_length() == 20
        got = logits_of(model, ids[:, 20:70], past_key_values=cache)
        same(got, logits_of(model, ids[:, 20:70], past_key_values=_read(model, ids[:, :20])))


def test_free_memory_is_the_machines_or_the_containers(tmp_path: Path) -> None:
    (tmp_path / "meminfo").write_text("MemTotal: 90 kB\nMemAvailable:   50 kB\n", encoding="utf-8")
    assert free_host_bytes(tmp_path, tmp_path / "meminfo") == 50 * 1024
    for name, value in (
        ("memory.max", "9000"),
        ("memory.current", "5000"),
        ("memory.stat", "anon 1\ninactive_file 7\n"),
    ):
        (tmp_path / name).write_text(value, encoding="utf-8")
    assert free_host_bytes(tmp_path, tmp_path / "meminfo") == 4007
    (tmp_path / "memory.max").write_text("max\n", encoding="utf-8")
    assert free_host_bytes(tmp_path, tmp_path / "meminfo") == 50 * 1024
    assert free_host_bytes(tmp_path / "none", tmp_path / "none") is None


def test_gradients_reach_keys_in_host_memory() -> None:
    k = torch.randn(1, G, 20, 8, requires_grad=True)
    pos = torch.arange(20)[None]
    store = Store([StoreRow(0, on_host=True)])
    store.append(KeyValues(k, 2 * k, pos, pos), False)
    keys, values = store.take(torch.tensor([[[[0, 18]], [[10, 5]]]]))
    (keys.sum() + values.sum()).backward()
    assert k.grad is not None
    assert k.grad.sum() == 3 * 4 * 8
