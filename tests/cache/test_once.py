"""Layers of a cache that read the same hold one tensor of what is the same: positions, columns, what was dropped."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from transformers import DynamicCache

from hf_longctx import CodeLookup, LMInfinite, PositionFree, StreamingLLM
from hf_longctx.cache.once import Once, each
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
    """How many tensors the layers of each kind have."""
    kinds = {type(layer) for layer in cache.layers}
    return {
        f"{kind.__name__}.{name}": {id(getattr(layer, name)) for layer in cache.layers if type(layer) is kind}
        for kind in kinds
        for name in HELD
    }


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
