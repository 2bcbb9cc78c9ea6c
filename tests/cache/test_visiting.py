"""Keys in host memory that visit the device, and stay where there is no room for them."""

from __future__ import annotations

import pytest
import torch

from hf_longctx.cache import KeyValues, Store, visiting
from hf_longctx.cache.store_row import StoreRow
from hf_longctx.ops.paged import paged
from hf_longctx.ops.pages import Pages


@pytest.fixture
def store() -> Store:
    """Of two rows of 9,000 tokens, that share their first page."""
    k, pos = torch.randn(1, 2, 9000, 4), torch.arange(9000)[None]
    store = Store([StoreRow(16, on_host=True)])
    store.append(KeyValues(k, k, pos, pos), False)
    store.select([0, 0])
    return store


def pages_of(store: Store) -> Pages:
    pages = paged(torch.zeros(2, 2, 32, 4), torch.zeros(2, 2, 32, 4), torch.arange(32).expand(2, -1), 16, pages=6)[0]
    at = [[piece.data_ptr() for piece in row.k.pieces] for row in store.rows]
    return pages._replace(k=torch.tensor([some + [0] * 4 for some in at]))


def test_copies_hold_what_the_host_holds_whatever_the_default_device_is(store: Store) -> None:
    pages = pages_of(store)
    with torch.device("meta"):
        visitors, held = visiting.keys_on_device(pages, store.rows, 9000)
    assert held is not None
    assert visitors.k.shape == pages.k.shape
    assert len(held) == 3, "a shared page is copied once"
    numbers = (visitors.k - held.data_ptr()) // held[0].nbytes
    for row, entries in zip(store.rows, numbers.tolist(), strict=True):
        there = torch.cat([held[number] for number in entries[:2]], 1)[:, : row.filled]
        assert torch.equal(there, row.k.cut(0, row.filled))
    assert (visitors.k[:, 2:] == 0).all()
    assert visitors._replace(k=pages.k) == pages


def test_keys_stay_where_the_device_has_no_room_for_all(store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*shape: object, **more: object) -> None:
        raise torch.OutOfMemoryError("CUDA out of memory")

    pages = pages_of(store)
    monkeypatch.setattr(torch, "empty", full)
    assert visiting.keys_on_device(pages, store.rows, 9000) == (pages, None)
