"""Where the tokens of a store lie, told again only where something has moved, without a wait of the host."""

from __future__ import annotations

import weakref
from collections import Counter
from typing import Any

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode

from hf_longctx.cache import addresses, growing
from hf_longctx.cache.addresses import NAMES, Addresses
from hf_longctx.cache.slots import KeyValues
from hf_longctx.cache.store import Store
from hf_longctx.cache.store_row import StoreRow
from hf_longctx.ops import pages as sizes
from hf_longctx.ops.host import send
from hf_longctx.ops.pages import NEVER

PAGE, CENTRED = 8, 4
FIRST = 2 * PAGE + 3


class Operators(TorchDispatchMode):
    """Counts what is called inside, and what of it copies numbers of the host at once."""

    def __init__(self) -> None:
        super().__init__()
        self.counts: Counter[str] = Counter()
        self.waits = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        name = func.overloadpacket.__name__
        self.counts[name] += 1
        if name == "copy_" and args[0].dtype == torch.long:  # positions, counters and addresses
            self.waits += not (len(args) > 2 and args[2]) and not (kwargs or {}).get("non_blocking", False)
        return func(*args, **(kwargs or {}))


@pytest.fixture(autouse=True)
def _as_on_a_gpu(monkeypatch: pytest.MonkeyPatch) -> None:
    for where, name, value in (
        (growing, "PIECE", PAGE),
        (sizes, "PAGE", PAGE),
        (addresses, "DEVICES", ("cpu",)),
        (Store, "_can_page", lambda store: True),
    ):
        monkeypatch.setattr(where, name, value)


def tokens(start: int, count: int, rows: int) -> KeyValues:
    k, v = torch.randn(2, rows, 2, count, 4, generator=torch.Generator().manual_seed(start))
    at = torch.arange(start, start + count).expand(rows, -1)
    return KeyValues(k, v, at, at)


def stored(rows: int, room: int = 0) -> Store:
    store = Store([StoreRow(CENTRED, paged=True) for _ in range(rows)])
    store.append(tokens(0, FIRST, rows), False)
    store.reserve(room)
    assert store.pages() is not None
    return store


def check(store: Store) -> None:
    """What the addresses say is where the tensors lie, and what the rows say of themselves."""
    at = store.pages()
    assert at is not None
    assert store.addresses is not None
    for b, row in enumerate(store.rows):
        for n, name in enumerate(NAMES):
            true = [piece.data_ptr() for piece in getattr(row, name).pieces]
            told = store.addresses.table[n, b].tolist()
            assert told == true + [0] * (len(told) - len(true)), (b, name)
        assert at.filled_B[b] == row.filled
        assert at.ready_B[b] == (NEVER if row.ready is None else row.ready)
        if row.centre is not None:
            assert torch.equal(at.mean_BGD[b], row.centre.mean_GD)
            assert torch.equal(at.width_BGC[b], row.centre.width_GC)


def more(store: Store) -> None:
    store.append(tokens(FIRST, 3, len(store.rows)), False)


def several_pages(store: Store) -> None:
    store.append(tokens(FIRST, 5 * PAGE, len(store.rows)), False)


def hidden(store: Store) -> None:
    """Positions, and codes by another centre, are made again: as many tensors as there were before."""
    mask = torch.ones(len(store.rows), FIRST, dtype=torch.bool)
    mask[:, 1] = False
    store.show(mask)


def rows_again(store: Store) -> None:
    store.select([1, 1])


def other_rows(store: Store) -> None:
    store.select([1, 0])


def hidden_and_more(store: Store) -> None:
    hidden(store)
    more(store)


@pytest.mark.parametrize("change", [more, several_pages, hidden, rows_again, other_rows, hidden_and_more])
def test_addresses_follow_whatever_changes(change: Any) -> None:
    store = stored(2)
    check(store)
    before = store.addresses.table.clone()  # type: ignore[union-attr]
    change(store)
    if change is not more:
        check(store)
        assert not torch.equal(before, store.addresses.table)  # type: ignore[union-attr]
    more(store)
    check(store)


def test_the_host_looks_at_no_page_again_and_waits_for_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    """Every layer of every forward that looks tokens up asks after it has written: as much for any number of pages."""
    asked = []
    monkeypatch.setattr(addresses, "can_stand", lambda row: asked.append(row) or True)
    monkeypatch.setattr("hf_longctx.cache.store.can_stand", addresses.can_stand)
    found = []
    for room in (PAGE, 40 * PAGE):
        store = stored(2, room)
        asked.clear()
        more(store)
        with Operators() as seen:
            assert store.pages() is not None
        assert not asked
        assert not seen.waits
        found.append(seen.counts)
        with Operators() as seen:
            store.pages()
        assert not seen.counts  # nothing was written since
    assert found[0] == found[1]
    assert found[0]["copy_"] == 1, found[0]  # how much is filled


def test_numbers_are_sent_in_the_order_of_rows() -> None:
    into = torch.zeros(2, 3, dtype=torch.long)
    with Operators() as seen:
        send([[1, 2, 3], [4, 5, 6]], into)
    assert into.tolist() == [[1, 2, 3], [4, 5, 6]]
    assert not seen.waits


def test_what_was_moved_away_is_not_kept_alive() -> None:
    store = stored(2)
    gone = weakref.ref(store.rows[0].k)
    store.select([1])
    assert gone() is None


def test_another_store_has_addresses_of_its_own() -> None:
    """Rows that two stores share, as after a copy of one: each tells where its own lie."""
    store = stored(1)
    twin = Store([store.rows[0].twin()])
    more(twin)
    check(twin)
    check(store)
    assert isinstance(store.addresses, Addresses)
    assert not torch.equal(store.addresses.table, twin.addresses.table)  # type: ignore[union-attr]
