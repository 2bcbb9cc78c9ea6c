"""Layers of a cache that read the same hold one tensor of what is the same: positions, columns, what was dropped."""

from __future__ import annotations

import contextlib
from typing import Any

import pytest
import torch
from transformers import DynamicCache

from hf_longctx import CodeLookup, LMInfinite, PositionFree, StreamingLLM
from hf_longctx.cache.once import Once, each
from hf_longctx.cache.slots import KeyValues
from hf_longctx.cache.store import Store
from hf_longctx.cache.store_row import StoreRow, made_places
from tests.tiny import left_padded, logits_of, text, tiny

WINDOW: dict[str, Any] = {"n_global": 2, "n_local": 16}
METHODS = [
    LMInfinite(**WINDOW),
    StreamingLLM(n_sink=2, window=16),
    CodeLookup(**WINDOW, top_k=3, shortlist=8),
    CodeLookup(**WINDOW, top_k=3, shortlist=8, gate="heads", heads=[[0, 1], [2, 0]]),
    PositionFree(),
]
HELD = ("pos", "column", "evicted_B")


def held(cache: Any) -> dict[str, set[int]]:
    """The objects that the layers of each kind have, and those of all that they keep to look up."""
    kinds = {type(layer) for layer in cache.layers}
    found = {
        f"{kind.__name__}.{name}": {id(getattr(layer, name)) for layer in cache.layers if type(layer) is kind}
        for kind in kinds
        for name in HELD
    }
    stores = [layer.everything for layer in cache.layers if layer.everything is not None]
    for row in range(len(stores[0].rows) if stores else 0):
        for name in ("pos", "column"):
            found[f"store, row {row}: {name}"] = {id(getattr(store.rows[row], name)) for store in stores}
    return found


@pytest.mark.parametrize("padded", [False, True])
@pytest.mark.parametrize("method", METHODS, ids=lambda method: f"{method.name}-{getattr(method, 'gate', '')}")
def test_layers_share_what_is_the_same_and_read_as_before(method: Any, padded: bool) -> None:
    model = tiny(num_hidden_layers=3)
    texts = [text(1, n, seed=n)[0] for n in (60, 47 if padded else 60)]
    ids, mask = left_padded(texts)
    pos = (mask.cumsum(1) - 1).masked_fill(mask == 0, 0)
    with method.on(model):
        truth, cache, ours = logits_of(model, ids, attention_mask=mask, use_cache=False), DynamicCache(), []
        for start, stop in ((0, 20), (20, 41), (41, 42), (42, 43), (43, 60)):  # single tokens go into rings
            given = {"attention_mask": mask[:, :stop]} if padded else {}
            ours.append(
                logits_of(
                    model, ids[:, start:stop], past_key_values=cache, position_ids=pos[:, start:stop].clone(), **given
                )
            )
            assert {name: len(tensors) for name, tensors in held(cache).items() if len(tensors) > 1} == {}
    ours_BL = torch.cat(ours, 1)
    torch.testing.assert_close(ours_BL[mask == 1], truth[mask == 1], atol=5e-5, rtol=1e-5)


def test_positions_that_were_given_may_change_afterwards() -> None:
    model, ids, cache = tiny(num_hidden_layers=2), text(1, 12), DynamicCache()
    with LMInfinite(**WINDOW).on(model):
        truth = logits_of(model, ids, use_cache=False)
        pos = torch.arange(8)[None]
        logits_of(model, ids[:, :8], past_key_values=cache, position_ids=pos)
        pos += 100
        after = logits_of(model, ids[:, 8:], past_key_values=cache)
    torch.testing.assert_close(after, truth[:, 8:], atol=5e-5, rtol=1e-5)


def test_rows_that_one_layer_loses_are_its_own() -> None:
    """A layer that goes another way has tensors of its own from then on, and the others theirs."""
    model, ids, cache = tiny(num_hidden_layers=3), text(2, 12), DynamicCache()
    with LMInfinite(**WINDOW).on(model):
        logits_of(model, ids, past_key_values=cache)
        first = cache.layers[0]
        first.batch_select_indices(torch.tensor([1]))
        assert first.pos.shape[0] == 1
        assert cache.layers[1].pos is cache.layers[2].pos
        assert cache.layers[1].pos.shape[0] == 2


@pytest.mark.parametrize("padded", [False, True])
def test_rows_that_are_repeated_go_on_by_themselves(padded: bool) -> None:
    """Beams: rows of one text that go on differently, in every layer alike."""
    model, method = tiny(num_hidden_layers=2), CodeLookup(**WINDOW, top_k=3, shortlist=8)
    ids, mask = left_padded([text(1, n, seed=n)[0] for n in (40, 31 if padded else 40)])
    chosen, more = torch.tensor([1, 1, 0]), text(3, 4, seed=9)
    with method.on(model):
        cache = DynamicCache()
        logits_of(model, ids, attention_mask=mask, past_key_values=cache)
        cache.batch_select_indices(chosen)
        both, all_mask = torch.cat([ids[chosen], more], 1), torch.cat([mask[chosen], torch.ones(3, 4).long()], 1)
        ours = logits_of(model, more, attention_mask=all_mask, past_key_values=cache)
        truth = logits_of(model, both, attention_mask=all_mask, use_cache=False)[:, -4:]
    torch.testing.assert_close(ours, truth, atol=5e-5, rtol=1e-5)


def test_layers_that_read_other_tokens_have_their_own_places() -> None:
    """As the last layers would that a model runs for the last tokens alone."""
    once, stores, whole = Once(), [Store([StoreRow(0, places=PLACES)]) for _ in range(2)], keys_of(range(12))
    for store in stores:
        store.write(keys_of(range(5)), False)()
    part = keys_of(range(9, 12))
    for store, new in zip(stores, (keys_of(range(5, 12)), part), strict=True):
        store.write(new, False, once)()
    assert stores[0].rows[0].pos.cut(0, 12)[0].tolist() == whole.pos[0].tolist()
    assert stores[1].rows[0].pos.cut(0, 8)[0].tolist() == [*range(5), *range(9, 12)]


PLACES = made_places(False)


def keys_of(positions: range) -> KeyValues:
    """Any keys and values at these positions of a text."""
    pos = torch.tensor(positions)[None]
    x = torch.randn(1, 2, len(positions), 4, generator=torch.Generator().manual_seed(0))
    return KeyValues(x, x, pos, pos)


BROKEN = {  # where a forward may break off in its first layer before the cache has its tokens
    "the projection": ("torch.nn.Linear.forward", {1, 7}),
    "the window and the new tokens": ("hf_longctx.cache.slots.KeyValues.then", {7}),
    "what is kept of them": ("hf_longctx.cache.slots.KeyValues.last", {7}),
    "what is dropped": ("hf_longctx.cache.sink_window._highest_dropped", {7}),
}


@pytest.mark.parametrize("error", [torch.OutOfMemoryError, KeyboardInterrupt])
@pytest.mark.parametrize(("read", "steps"), [(1, 0), (1, 2), (30, 0), (30, 2)])
@pytest.mark.parametrize("where", BROKEN)
@pytest.mark.parametrize("method", METHODS, ids=lambda method: f"{method.name}-{getattr(method, 'gate', '')}")
def test_a_forward_that_breaks_off_in_its_first_layer_leaves_the_cache_as_it_was(
    method: Any, where: str, read: int, steps: int, error: type[BaseException], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Other tokens may then be read in place of those, one by one or at once."""
    place, sizes = BROKEN[where]

    def breaks(*args: Any) -> Any:
        raise error

    for size in sizes:
        model, ids, n = tiny(num_hidden_layers=3), text(1, 60), read
        with method.on(model):
            truth, cache = logits_of(model, ids, use_cache=False), DynamicCache()
            logits_of(model, ids[:, :read], past_key_values=cache)
            for _ in range(steps):
                logits_of(model, ids[:, n : n + 1], past_key_values=cache)
                n += 1
            other = text(1, size, seed=5)
            with monkeypatch.context() as broken:
                broken.setattr(place, breaks)
                with contextlib.suppress(error):  # nothing is dropped of a short text
                    logits_of(model, other, past_key_values=cache)
            if cache.get_seq_length() > n:
                continue
            ours = [logits_of(model, some, past_key_values=cache) for some in (ids[:, n : n + 1], ids[:, n + 1 :])]
        torch.testing.assert_close(torch.cat(ours, 1), truth[:, n:], atol=5e-5, rtol=1e-5)


def test_a_function_of_the_same_tensors_is_called_once() -> None:
    calls, once, x, y = [], Once(), torch.ones(2), torch.ones(2)

    def f(*args: Any) -> Any:
        calls.append(args)
        return args[0] + 1

    assert once(f, x, 3) is once(f, x, 3)
    assert len(calls) == 1
    assert once(f, y, 3) is not once(f, x, 3)  # equal, and another object
    assert once(f, x, 4) is not once(f, x, 3)
    assert once(f, torch.ones(2)) is not once(f, torch.ones(2))  # though the first may be gone
    assert each(f, x) is not each(f, x)
