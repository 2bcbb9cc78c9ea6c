"""Room made for a whole forward at once, as a GPU needs it: what is kept there, and what becomes of it."""

# B rows, G heads, D head dim
from __future__ import annotations

import copy
import pickle
from itertools import pairwise
from typing import Any

import pytest
import torch
from torch import Tensor
from transformers import DynamicCache

from hf_longctx import CodeLookup, LMInfinite
from hf_longctx.cache import addresses, growing
from hf_longctx.cache.growing import Growing, reserve
from tests.contract.registry import same
from tests.tiny import left_padded, logits_of, text, tiny

METHODS: dict[str, Any] = {
    "signs": CodeLookup(n_global=2, n_local=16, top_k=3, shortlist=8),
    "top_k": LMInfinite(n_global=2, n_local=16, top_k=3, top_k_from_layer=0),
}
NAMES = ("k", "v", "pos", "column", "words", "size")


@pytest.fixture(autouse=True)
def _small_pieces(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(growing, "PIECE", 16)


@pytest.fixture
def pages(monkeypatch: pytest.MonkeyPatch) -> None:
    """As on a GPU."""
    monkeypatch.setattr(addresses, "DEVICES", ("cpu",))


def neighbours(pieces: list[Tensor]) -> bool:
    """Do they lie one after the other?"""
    ends = [(piece.data_ptr(), piece.data_ptr() + piece.nbytes) for piece in pieces]
    return all(one[1] == other[0] for one, other in pairwise(sorted(ends)))


def rows_of(cache: DynamicCache) -> list[Any]:
    return [row for layer in cache.layers for row in layer.everything.rows]


def read(model: Any, cache: DynamicCache, ids: Tensor, sizes: list[int], mask: Tensor | None = None) -> Tensor:
    logits, start = [], cache.get_seq_length()
    for size in sizes:
        seen = {} if mask is None else {"attention_mask": mask[:, : start + size]}
        logits.append(logits_of(model, ids[:, start : start + size], past_key_values=cache, **seen))
        start += size
    return torch.cat(logits, 1)


def some(kinds: list[Any]) -> list[Growing]:
    made = [Growing(paged=True) for _ in kinds]
    for one, (shape, dtype) in zip(made, kinds, strict=True):
        one.write(0, torch.ones(shape, dtype=dtype))
    return made


def test_pieces_that_are_alike_are_made_in_one_memory_and_are_tensors_of_their_own() -> None:
    kinds = [((2, 5, 8), torch.float32), ((1, 5), torch.long), ((2, 5, 8), torch.float32), ((2, 5, 8), torch.bfloat16)]
    held = some(kinds)
    unwritten, before = Growing(paged=True), [one.made for one in held]
    reserve([(one, 16 * 4) for one in (*held, unwritten)])
    assert not unwritten.pieces, "what it holds is not known yet"
    assert [len(one.pieces) for one in held] == [4] * 4
    assert [one.made for one in held] == [n + 3 for n in before], "addresses are new"
    assert neighbours([*held[0].pieces[1:], *held[2].pieces[1:]])
    for one, (shape, dtype) in zip(held, kinds, strict=True):
        for piece in one.pieces:
            assert piece.shape == (shape[0], 16, *shape[2:])
            assert piece.dtype == dtype
            assert piece.untyped_storage().nbytes() == piece.nbytes
        one.write(5, torch.arange(50).to(dtype).view(1, 50, *[1] * (len(shape) - 2)).expand(shape[0], 50, *shape[2:]))
    for one in held:
        row = one.cut(0, 55).flatten(2)[0, :, 0] if one.pieces[0].ndim > 2 else one.cut(0, 55)[0]
        assert row.tolist() == [1.0] * 5 + list(range(50))
    reserve([(one, 16 * 4) for one in held])
    assert [len(one.pieces) for one in held] == [4] * 4, "nothing is lacking"


def test_no_memory_is_larger_than_it_may_be(monkeypatch: pytest.MonkeyPatch) -> None:
    held = some([((1, 3), torch.long)] * 3)
    monkeypatch.setattr(growing, "AT_ONCE", 2 * 16 * 8 + 1)  # two pieces
    sizes: list[int] = []
    make = growing._pieces
    monkeypatch.setattr(growing, "_pieces", lambda count, *rest: sizes.append(count) or make(count, *rest))
    reserve([(one, 48) for one in held])
    assert sizes == [2, 2, 2]
    monkeypatch.setattr(growing, "AT_ONCE", 1)
    reserve([(one, 64) for one in held])
    assert sizes[3:] == [1, 1, 1]


def test_where_there_is_no_room_for_all_at_once_there_may_be_for_each(monkeypatch: pytest.MonkeyPatch) -> None:
    held, empty = some([((1, 3, 4), torch.float32)] * 2), torch.empty

    def fragmented(*shape: Any, **kind: Any) -> Tensor:
        made = empty(*shape, **kind)
        if made.numel() > 16 * 4:
            raise torch.OutOfMemoryError
        return made

    monkeypatch.setattr(torch, "empty", fragmented)
    reserve([(one, 48) for one in held])
    assert [[piece.shape for piece in one.pieces] for one in held] == [[(1, 16, 4)] * 3] * 2
    monkeypatch.setattr(growing, "PIECE", 32)
    with pytest.raises(torch.OutOfMemoryError):
        some([((1, 3, 4), torch.float32)])


@torch.inference_mode()
def test_pieces_are_made_in_inference_mode_as_well() -> None:
    (one,) = some([((1, 3), torch.long)])
    reserve([(one, 64)])
    one.write(3, torch.arange(40)[None])
    assert one.cut(3, 43).tolist() == [list(range(40))]


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("rows", [1, 2])
def test_a_forward_finds_room_in_all_layers_and_gives_the_same_logits(
    method: str, rows: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    model, ids, found, sizes = tiny(), text(rows, 150), [], [20, 40, 7, 1, 1, 50, 31]
    with METHODS[method].on(model):
        for devices in (("cuda",), ("cpu",)):
            monkeypatch.setattr(addresses, "DEVICES", devices)
            cache = DynamicCache()
            found.append(read(model, cache, ids, sizes))
    same(*found)
    alike = [[row.k.pieces[-2:] + row.v.pieces[-2:] for row in rows_of(cache)[b::rows]] for b in range(rows)]
    for row in alike:
        assert neighbours([piece for pieces in row for piece in pieces]), "made by the last forward for all layers"
    assert all(len(getattr(row, name).pieces) in (0, 10) for row in rows_of(cache) for name in NAMES), "no piece more"


def test_a_padded_batch_has_no_more_room_than_its_rows_need(pages: None) -> None:
    ids, mask = left_padded([text(1, n, seed=n)[0] for n in (100, 20)])
    model, cache = tiny(), DynamicCache()
    with METHODS["signs"].on(model):
        read(model, cache, ids, [60, 40], mask)
    assert [[len(row.k.pieces) for row in layer.everything.rows] for layer in cache.layers] == [[7, 2]] * 2


def test_copies_and_pickles_hold_their_own_tokens_and_nothing_else(pages: None) -> None:
    model, ids = tiny(), text(2, 200)
    with METHODS["signs"].on(model):
        cache = DynamicCache()
        read(model, cache, ids, [20, 130])
        cache.batch_select_indices(torch.tensor([0, 0]))
        size = sum(layer.nbytes() for layer in cache.layers)
        pickled = pickle.dumps(cache)
        # pieces of one memory: each pickled with all of it would be many times as much
        assert len(pickled) < 2 * size
        twins = [copy.deepcopy(cache), pickle.loads(pickled)]
        for twin in twins:
            assert sum(layer.nbytes() for layer in twin.layers) == size, "rows share what they shared"
        both = torch.cat([ids[:1]] * 2)
        logits = [read(model, one, both, [50]) for one in (cache, *twins)]
    same(logits[0], logits[1])
    same(logits[0], logits[2])


def test_gradients_make_no_room_that_they_would_not_use(pages: None) -> None:
    model, ids = tiny().requires_grad_(True), text(1, 100)
    with METHODS["signs"].on(model):
        cache = DynamicCache()
        out = [model(part, past_key_values=cache, use_cache=True).logits for part in ids.split([30, 70], 1)]
        torch.cat(out, 1).square().mean().backward()
    assert all(p.grad is not None for p in model.parameters())
