"""Pages in host memory are made by threads, those of the next chunk while this one is read; CUDA's part is replaced."""

from __future__ import annotations

import copy
import gc
import mmap
from collections.abc import Iterator
from typing import Any

import pytest
import torch
from transformers import DynamicCache

from hf_longctx import CodeLookup, LMInfinite
from hf_longctx.cache import host_room
from hf_longctx.ops import pinned
from hf_longctx.ops.pinned import Pool
from tests.contract.registry import same
from tests.tiny import left_padded, logits_of, text, tiny

SETTINGS: dict[str, Any] = {"n_global": 2, "n_local": 16, "top_k": 3}
METHODS = {
    "signs": CodeLookup(**SETTINGS, shortlist=8, on_host=True),
    "keys": CodeLookup(**SETTINGS, by="keys", on_host=True),
    "top_k": LMInfinite(**SETTINGS, top_k_from_layer=0, keys_on_host=True),
}
LAYERS = 2
PAGE = 2**10  # bytes of 2 heads, 16 tokens, 8 numbers; of keys, and as many of values


@pytest.fixture(autouse=True)
def _small_pages(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("hf_longctx.cache.growing.PIECE", 16)
    monkeypatch.setattr("hf_longctx.cache.growing.LEAST", 4)
    monkeypatch.setattr(CodeLookup, "check", lambda self, decoder: None)  # as if there was a GPU


@pytest.fixture
def pool(monkeypatch: pytest.MonkeyPatch) -> Iterator[Pool]:
    """One that is used alone, and of which all is given back in the end."""
    made, registered = Pool(), set[int]()
    monkeypatch.setattr(pinned, "LEAST", 1)
    monkeypatch.setattr(pinned, "can_register", lambda device: True)
    monkeypatch.setattr(pinned, "register", lambda memory, device: registered.add(memory.data_ptr()))
    monkeypatch.setattr(pinned, "unregister", lambda address, device: registered.remove(address) is None)
    monkeypatch.setattr(torch.cuda, "synchronize", lambda device: None)
    for place in ("cache.growing", "cache.host_room", "ops.host"):
        monkeypatch.setattr(f"hf_longctx.{place}.POOL", made)
    monkeypatch.setattr(host_room, "free_host_bytes", lambda: 2**40)
    yield made
    gc.collect()
    made.give_back()
    assert registered == set(), "no cache is left"


PAGE_OF_SYSTEM = mmap.PAGESIZE  # bytes, of which a piece takes a whole number


def pages(cache: DynamicCache) -> int:
    rows = [row for layer in cache.layers for row in layer.everything.rows]
    return len({piece.data_ptr() for row in rows for growing in (row.k, row.v) for piece in growing.pieces})


def read(model: Any, ids: torch.Tensor, sizes: tuple[int, ...], mask: torch.Tensor | None = None) -> torch.Tensor:
    cache, found, start = DynamicCache(), [], 0
    for size in sizes:
        stop = start + size
        given = {} if mask is None else {"attention_mask": mask[:, :stop]}
        found.append(logits_of(model, ids[:, start:stop], **given, past_key_values=cache))
        start = stop
        if size == 5:
            cache = copy.deepcopy(cache)
        if size == 7 and mask is None:
            cache.reorder_cache(torch.tensor([1, 0, 1]))
            ids = ids[[1, 0, 1]]
    return torch.cat([x[:2] for x in found], 1)


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("padded", [False, True])
def test_logits_are_bit_for_bit_those_of_pages_that_torch_pins(
    method: str, padded: bool, pool: Pool, monkeypatch: pytest.MonkeyPatch
) -> None:
    model = tiny()
    ids, mask = left_padded([text(1, n, seed=n)[0] for n in (78, 31)])
    if not padded:
        ids, mask = text(2, 78), None
    with METHODS[method].on(model):
        ours = read(model, ids, (40, 5, 1, 1, 7, 1, 22), mask)
        assert pool.seen.made > pool.seen.torchs == 0
        monkeypatch.setattr(pinned, "can_register", lambda device: False)
        theirs = read(model, ids, (40, 5, 1, 1, 7, 1, 22), mask)
        assert pool.seen.torchs
    same(ours, theirs)


def test_the_next_chunk_s_pages_are_made_while_one_is_read_and_none_for_a_single_token(pool: Pool) -> None:
    model, cache, ids = tiny(), DynamicCache(), text(1, 200)
    with METHODS["signs"].on(model):

        def go(start: int, stop: int) -> None:
            logits_of(model, ids[:, start:stop], past_key_values=cache)

        go(0, 32)
        assert (pages(cache), pool.available(PAGE)) == (2 * 2 * LAYERS, 0), "nobody knows whether more comes"
        go(32, 64)
        assert (pages(cache), pool.available(PAGE)) == (4 * 2 * LAYERS, 2 * 2 * LAYERS)
        made = pool.seen.made + pool.coming_bytes()
        pool._executor().shutdown()  # what is being made is there; from here on nothing can be made
        pool._threads, executor = None, pool._executor
        go(64, 80)
        assert (pages(cache), pool.available(PAGE)) == (5 * 2 * LAYERS, 1 * 2 * LAYERS)
        for at in range(80, 96):
            go(at, at + 1)
        assert (pages(cache), pool.available(PAGE)) == (6 * 2 * LAYERS, 0)
        assert pool.seen.made == made == 6 * 2 * LAYERS * PAGE_OF_SYSTEM
        assert executor() is not None
        go(96, 97)
        assert (pages(cache), pool.available(PAGE)) == (7 * 2 * LAYERS, 0), "one token makes what it needs"


def test_nothing_is_made_ahead_that_others_would_lack(pool: Pool, monkeypatch: pytest.MonkeyPatch) -> None:
    model, ids = tiny(), text(1, 64)
    each = 2 * 2 * LAYERS * PAGE
    for free, ahead in ((2 * each - 1, 0), (2 * each, 2 * 2 * LAYERS), (None, 0)):
        cache = DynamicCache()
        with METHODS["signs"].on(model):
            logits_of(model, ids[:, :32], past_key_values=cache)
            pool.give_back()
            monkeypatch.setattr(host_room, "free_host_bytes", lambda free=free: free)
            logits_of(model, ids[:, 32:], past_key_values=cache)
        assert pool.available(PAGE) == ahead
        monkeypatch.setattr(host_room, "free_host_bytes", lambda: 2**40)
        del cache
        gc.collect()
        pool.give_back()


def test_memory_that_is_made_already_needs_no_room_and_goes_before_a_text_is_refused(
    pool: Pool, monkeypatch: pytest.MonkeyPatch
) -> None:
    model, cache, ids = tiny(), DynamicCache(), text(1, 112)
    with METHODS["signs"].on(model):
        logits_of(model, ids[:, :32], past_key_values=cache)
        logits_of(model, ids[:, 32:64], past_key_values=cache)
        pool._executor().shutdown()
        pool._threads = None
        monkeypatch.setattr(host_room, "free_host_bytes", lambda: 0)
        got = logits_of(model, ids[:, 64:80], past_key_values=cache)  # of what was made ahead
        assert pool.available(PAGE) == 2 * LAYERS
        with pytest.raises(ValueError, match=r"32 more tokens of every row need 8 KiB of it, and 0 B are free"):
            logits_of(model, ids[:, 80:], past_key_values=cache)
        assert pool.available(PAGE) == 0, "all was given back first"
        assert cache.get_seq_length() == 80
        monkeypatch.setattr(host_room, "free_host_bytes", lambda: 8 * PAGE)
        more = logits_of(model, ids[:, 80:], past_key_values=cache)
        whole = DynamicCache()
        monkeypatch.setattr(host_room, "free_host_bytes", lambda: None)
        for start in (0, 32):
            logits_of(model, ids[:, start : start + 32], past_key_values=whole)
        same(got, logits_of(model, ids[:, 64:80], past_key_values=whole))
        same(more, logits_of(model, ids[:, 80:], past_key_values=whole))


def test_memory_that_is_lacking_half_way_leaves_the_cache_as_before(
    pool: Pool, monkeypatch: pytest.MonkeyPatch
) -> None:
    model, cache, ids, allocate, calls = tiny(), DynamicCache(), text(1, 80), torch.empty, [0]

    def refuse(memory: torch.Tensor, device: torch.device) -> None:
        calls[0] += 1
        if calls[0] > 5:
            raise RuntimeError("cudaHostRegister: error 2")
        own(memory, device)

    def empty(*args: Any, **kwargs: Any) -> torch.Tensor:
        if "pin_memory" in kwargs:
            raise RuntimeError("CUDA error: out of memory")
        return allocate(*args, **kwargs)

    own = pinned.register
    with METHODS["keys"].on(model):
        logits_of(model, ids[:, :20], past_key_values=cache)
        with monkeypatch.context() as broken:
            broken.setattr(pinned, "register", refuse)
            broken.setattr(torch, "empty", empty)
            with pytest.raises(RuntimeError, match="CUDA error: out of memory"):
                logits_of(model, ids[:, 20:70], past_key_values=cache)
            assert calls[0] > 5
            assert cache.get_seq_length() == 20
            pool.give_back()
        got = logits_of(model, ids[:, 20:70], past_key_values=cache)
        assert pool.seen.torchs == 0
        twin = DynamicCache()
        logits_of(model, ids[:, :20], past_key_values=twin)
        same(got, logits_of(model, ids[:, 20:70], past_key_values=twin))
