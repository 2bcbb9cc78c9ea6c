"""Pinned memory that threads register, and copies to it on a stream of their own, on a GPU."""

from __future__ import annotations

import dataclasses
import gc
from time import perf_counter
from typing import Any

import pytest
import torch
from torch import Tensor
from transformers import DynamicCache

from hf_longctx import CodeLookup
from hf_longctx.attention import lookup
from hf_longctx.cache import KeyValues, Store
from hf_longctx.cache.store_row import StoreRow
from hf_longctx.cache.visiting import keys_on_device
from hf_longctx.ops import pinned
from hf_longctx.ops.host import give_back_pinned
from hf_longctx.ops.pinned import POOL, Pool
from tests.tiny import logits_of, text, tiny

pytestmark = pytest.mark.gpu

G, D = 4, 128


@pytest.fixture(autouse=True)
def _given_back() -> Any:
    yield
    gc.collect()
    give_back_pinned()


def needs_registering() -> torch.device:
    card = torch.device("cuda", torch.cuda.current_device())
    if not pinned.can_register(card):
        pytest.skip("this device does not read registered memory by the host's addresses")
    return card


def test_registered_memory_is_pinned_read_by_address_and_used_again() -> None:
    from hf_longctx.ops.kernels.triton_pages import gather

    card, pool = needs_registering(), Pool()
    pool.ahead(G * 8192 * D * 2, 3, card)
    pages = [pool.empty((G, 8192, D), torch.bfloat16, card) for _ in range(3)]
    assert pool.seen.torchs == 0
    assert all(page.is_pinned() for page in pages)
    for n, page in enumerate(pages):
        page.copy_(torch.randn(G, 8192, D, device=card, generator=torch.Generator(card).manual_seed(n)))
    torch.cuda.synchronize()
    at = torch.tensor([[page.data_ptr() for page in pages]], device=card)
    table = torch.randint(-1, 3 * 8192, (1, G, 2, 500), device=card)
    got = gather(at, table, G, D, torch.bfloat16).cpu()
    whole, slots = torch.cat(pages, 1), table.cpu()
    wanted = whole[torch.arange(G)[:, None, None], slots[0].clamp(min=0)].masked_fill(slots[0, ..., None] < 0, 0)
    assert torch.equal(got[0], wanted)
    addresses = {page.data_ptr() for page in pages}
    del page, pages
    again = [pool.empty((G, 8192, D), torch.bfloat16, card) for _ in range(3)]
    assert {page.data_ptr() for page in again} == addresses
    del again
    pool.give_back()
    assert not pool._live


def test_python_goes_on_while_a_thread_registers_memory() -> None:
    card, pool = needs_registering(), Pool()
    pool.ahead(2**30, 1, card)
    last, longest = perf_counter(), 0.0
    while pool.coming_bytes():
        now = perf_counter()
        last, longest = now, max(longest, now - last)
    assert pool.empty((2**30,), torch.uint8, card).is_pinned()
    assert longest < 0.5 * (pool.seen.touching + pool.seen.registering)
    pool.give_back()


@pytest.mark.parametrize("size", [8192, 5000])
def test_copies_beside_the_reading_are_whole_though_their_sources_memory_is_used_again(size: int) -> None:
    needs_registering()
    S = 3 * 8192
    stores = [Store([StoreRow(0, paged=True, on_host=on_host)]) for on_host in (True, False)]
    for start in range(0, S, size):
        count = min(size, S - start)
        made = torch.Generator("cuda").manual_seed(start)
        for store in stores:
            made.manual_seed(start)
            both = torch.randn(2, 1, count, G, D, device="cuda", generator=made).bfloat16().transpose(2, 3)
            pos = torch.arange(start, start + count, device="cuda")[None]
            store.append(KeyValues(both[0], both[1], pos, pos), False)
            both.fill_(7)
            del both
            for _ in range(20):  # whose memory this takes at once
                torch.full((2, 1, count, G, D), 9, device="cuda", dtype=torch.bfloat16)
    for name in ("k", "v"):
        host, device = (getattr(store.rows[0], name).cut(0, S) for store in stores)
        assert torch.equal(host, device)


def test_a_text_read_in_chunks_is_that_of_pages_that_torch_pins(monkeypatch: Any) -> None:
    card = needs_registering()
    monkeypatch.setattr(pinned, "LEAST", 1)
    model, ids = tiny().cuda(), text(1, 42_000).cuda()
    method = CodeLookup(n_global=2, n_local=32, top_k=4, shortlist=64, on_host=True)

    def read() -> Tensor:
        cache, steps, start = DynamicCache(), [], 0
        for size in (16_384, 16_384, 8_000, 1, 1, 300):
            steps.append(logits_of(model, ids[:, start : start + size], past_key_values=cache)[:, -300:])
            start += size
        return torch.cat(steps, 1)

    with method.on(model):
        before = POOL.seen.made
        ours = read()
        assert POOL.seen.made > before
        monkeypatch.setattr(pinned, "can_register", lambda device: device != card)
        assert torch.equal(ours, read())
    visits: list[Any] = []
    monkeypatch.setattr(lookup, "keys_on_device", lambda *given: visits.append(given) or keys_on_device(*given))
    with dataclasses.replace(method, on_host=False).on(model):
        assert torch.equal(ours, read()), "many queries find in keys that visit the device what they find in keys on it"
    with method.on(model):
        assert torch.equal(ours, read())
    assert [keys_on_device(*given)[1] is not None for given in visits[-2:]] == [True, True]
