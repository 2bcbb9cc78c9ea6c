"""The store of a text: the same however the text was cut, padded or copied, and no row sees another's tokens."""

# B rows, G heads, D head dim
from __future__ import annotations

import copy
import itertools
from typing import Any

import pytest
import torch
from torch import Tensor

from hf_longctx.cache import KeyValues, Store, store_row
from hf_longctx.cache import growing as pieces
from hf_longctx.cache.growing import Growing
from hf_longctx.cache.store_row import StoreRow

N, G, D, FIRST = 37, 2, 8, 6


@pytest.fixture(autouse=True)
def _small_pieces(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(pieces, "PIECE", 8)
    monkeypatch.setattr(pieces, "LEAST", 2)
    monkeypatch.setattr(store_row, "AT_ONCE", 11)


def tokens(rows: int = 1, length: int = N, seed: int = 0) -> KeyValues:
    random = torch.Generator().manual_seed(seed)
    k, v = (torch.randn(rows, G, length, D, generator=random) for _ in range(2))
    pos = torch.arange(length).expand(rows, -1).contiguous()
    return KeyValues(k, v, pos, pos)


def columns(text: KeyValues, start: int, stop: int) -> KeyValues:
    assert text.column is not None
    at = slice(start, stop)
    return KeyValues(text.k[:, :, at], text.v[:, :, at], text.pos[:, at], text.column[:, at])


def filled(text: KeyValues, sizes: list[int], padded: bool = False) -> Store:
    store = Store([StoreRow(FIRST) for _ in range(len(text.pos))])
    start = 0
    for size in sizes:
        store.append(columns(text, start, start + size), padded)
        start += size
    return store


def held(row: StoreRow) -> dict[str, Tensor]:
    """All that a row holds, and what its codes are centred by."""
    found = {name: getattr(row, name).cut(0, row.filled) for name in ("k", "v", "pos", "column")}
    if row.centre is not None:
        assert row.coded == row.filled
        assert row.ready is not None
        codes = {"words": row.words.cut(0, row.coded), "size": row.size.cut(0, row.coded)}
        found |= {**codes, **row.centre._asdict(), "ready": row.ready}
    return found


def equal(row: StoreRow, other: StoreRow) -> None:
    mine, its = held(row), held(other)
    assert mine.keys() == its.keys()
    assert {name for name in mine if not torch.equal(mine[name], its[name])} == set()


@pytest.mark.parametrize("size", range(1, N + 1))
def test_chunks_of_every_size_leave_the_same_keys_codes_and_positions(size: int) -> None:
    text = tokens()
    cut = [size] * (N // size) + [N % size] * bool(N % size)
    row, whole = filled(text, cut).rows[0], filled(text, [N]).rows[0]
    equal(row, whole)
    assert row.centre is not None
    assert torch.equal(held(row)["k"], text.k[0])
    assert [piece.shape[1] for piece in row.k.pieces[:4]] == [8] * 4


def test_cuts_at_any_places_leave_the_same() -> None:
    text, random = tokens(), torch.Generator().manual_seed(7)
    whole = filled(text, [N]).rows[0]
    for _ in range(30):
        ends = (torch.rand(N - 1, generator=random) < torch.rand(1, generator=random)).nonzero()[:, 0] + 1
        cuts = [0, *ends.tolist(), N]
        equal(filled(text, [b - a for a, b in itertools.pairwise(cuts)]).rows[0], whole)


def test_a_padded_row_holds_what_it_holds_alone() -> None:
    text = tokens(2)
    real = torch.rand(2, N, generator=torch.Generator().manual_seed(3)) < 0.7
    pos = torch.where(real, real.long().cumsum(1) - 1, -1)
    padded = KeyValues(text.k, text.v, pos, text.column)
    store = filled(padded, [5, 1, 1, 20, 10], padded=True)
    for b in range(2):
        at = real[b].nonzero()[:, 0]
        alone = KeyValues(text.k[b : b + 1, :, at], text.v[b : b + 1, :, at], pos[b : b + 1, at], at[None])
        equal(store.rows[b], filled(alone, [len(at)]).rows[0])
    assert len({row.filled for row in store.rows}) == 2


@pytest.mark.parametrize("length", [5, 16, 21, N])
def test_chosen_rows_equal_rebuilt_ones_and_leave_the_others_as_they_were(length: int) -> None:
    text, more = tokens(3), tokens(4, 9, seed=1)
    store = filled(columns(text, 0, length), [length])
    left, before = store.rows[1], copy.deepcopy(store.rows[1])
    order = [2, 0, 0, 2]
    store.select(order)
    shared = [piece for piece in store.rows[1].k.pieces if any(piece is other for other in store.rows[2].k.pieces)]
    assert len(shared) == length // 8
    store.append(more, False)
    for b, source in enumerate(order):
        both = [columns(text, 0, length), more]
        k, v = (torch.cat([getattr(both[0], x)[[source]], getattr(both[1], x)[[b]]], 2) for x in "kv")
        pos, column = (
            torch.cat([getattr(both[0], x)[[source]], getattr(both[1], x)[[b]]], 1) for x in ("pos", "column")
        )
        equal(store.rows[b], filled(KeyValues(k, v, pos, column), [length + 9]).rows[0])
    equal(left, before)


def test_beams_share_the_pieces_that_are_complete() -> None:
    store = filled(tokens(1, 8 * 40 + 1), [8 * 40 + 1])
    alone = store.nbytes()
    store.select([0, 0, 0, 0])
    assert store.nbytes() <= 1.1 * alone


def test_what_fails_half_way_leaves_everything_as_before(monkeypatch: pytest.MonkeyPatch) -> None:
    text = tokens()
    for n in range(1, 30):  # the n-th tensor cannot be written
        store = filled(columns(text, 0, 5), [5])
        write, calls = Growing.write, [0]

        def fails(self: Any, *args: Any, calls: list[int] = calls, n: int = n, write: Any = write) -> None:
            calls[0] += 1
            if calls[0] == n:
                raise MemoryError
            write(self, *args)

        with monkeypatch.context() as broken:
            broken.setattr(Growing, "write", fails)
            try:
                store.append(columns(tokens(seed=9), 5, 20), False)
            except MemoryError:
                pass
            else:
                assert n == 11, "keys, values, positions, columns, and words and sizes of three pieces"
                return
        store.append(columns(text, 5, N), False)
        equal(store.rows[0], filled(text, [N]).rows[0])


def test_nothing_of_another_row_is_read_nor_what_is_not_filled() -> None:
    text = tokens(2, 19)
    text.k[1], text.v[1] = float("nan"), float("nan")
    store = filled(text, [19])
    for name in ("k", "v"):
        getattr(store.rows[0], name).pieces[-1][:, 19 - 16 :] = float("nan")
    table = torch.randint(-1, 19, (2, 2 * G, 5, 3), generator=torch.Generator().manual_seed(0))
    k, v = store.take(table)
    assert torch.isfinite(k[0]).all()
    assert torch.isfinite(v[0]).all()
    assert k[1].isnan().all()
    wanted = text.k[0].repeat_interleave(2, 0)[torch.arange(2 * G)[:, None, None], table[0].clamp(min=0)]
    assert torch.equal(k[0], wanted)


def test_a_row_of_padding_only_takes_part_and_holds_nothing() -> None:
    text = tokens(2, 9)
    text.pos[1] = -1
    store = filled(text, [4, 5], padded=True)
    assert store.rows[1].filled == 0
    store.show(torch.ones(2, 9, dtype=torch.bool))
    assert not store.take(torch.full((2, G, 1, 1), -1))[0][1].any()


def test_hidden_tokens_keep_their_slots_and_codes_are_centred_by_those_shown() -> None:
    text = tokens()
    store, row = filled(text, [20, 17]), filled(text, [N]).rows[0]
    mask = torch.rand(1, N, generator=torch.Generator().manual_seed(4)) < 0.6
    store.show(mask)
    seen = store.rows[0].pos.cut(0, N)
    assert torch.equal(seen >= 0, mask)
    at = mask[0].nonzero()[:, 0]
    alone = filled(KeyValues(text.k[:, :, at], text.v[:, :, at], text.pos[:, at], at[None]), [len(at)]).rows[0]
    assert torch.equal(store.rows[0].words.cut(0, N)[:, at], held(alone)["words"])
    store.show(torch.ones(1, N, dtype=torch.bool))
    equal(store.rows[0], row)
    store.show(torch.arange(N)[None] < FIRST - 1)
    assert store.rows[0].centre is None, "too few are shown"


def test_gradients_reach_keys_through_the_store_whatever_comes_later() -> None:
    k = torch.randn(1, G, 11, D, requires_grad=True)
    text = KeyValues(k, 2 * k, torch.arange(11)[None], torch.arange(11)[None])
    store = filled(text, [4, 1, 6])
    table = torch.tensor([[[[0, 3]], [[10, 5]]]])
    keys, values = store.take(table)
    store.append(columns(tokens(1, 3, seed=2), 0, 3), False)
    (keys.sum() + values.sum()).backward()
    wanted = torch.zeros(1, G, 11, D)
    wanted[0, 0, [0, 3]] = wanted[0, 1, [10, 5]] = 3.0
    assert k.grad is not None
    assert torch.equal(k.grad, wanted)
