"""Decoding behind a shared prefix from a graph, the bookkeeping: buffers that grow, turns, beams, and nothing kept."""

from __future__ import annotations

import gc
import weakref
from typing import Any

import pytest
import torch

from hf_longctx import shared_prefix
from hf_longctx.generation import cuda_graph as graphs
from tests.contract.registry import same
from tests.sharing.prefixes import DOCUMENT, GREEDY, IDS, LOGITS, MASK, agree, stock_batch
from tests.tiny import FAMILIES, MORE_FAMILIES, text, tiny


@pytest.mark.parametrize("family", [*FAMILIES, *MORE_FAMILIES])
def test_generate_replays_and_gives_eagers_tokens_in_several_turns(family: str, machine: Any) -> None:
    model, more = tiny(family), text(3, 5, seed=9)
    watched, found = machine(model), []
    with shared_prefix(model, DOCUMENT) as prefix:
        for off in (False, True):
            cache, settings = prefix.cache(), {"do_sample": False, "disable_compile": off, **LOGITS}
            first = prefix.generate(IDS, attention_mask=MASK, past_key_values=cache, max_new_tokens=15, **settings)
            turn = torch.cat([first.sequences, more], 1)
            mask = torch.cat([MASK, MASK.new_ones(3, turn.shape[1] - MASK.shape[1])], 1)
            second = prefix.generate(turn, attention_mask=mask, past_key_values=cache, max_new_tokens=9, **settings)
            found.append((first, second, cache.get_seq_length()))
    assert watched.recorded == 2
    # all but the first two tokens of a turn: one makes the buffers, and one reads all of them as a recorded step does
    assert watched.replayed == 12 + 6
    (graph, graph_second, length), (eager, eager_second, eager_length) = found
    same(graph.sequences, eager.sequences)
    same(graph_second.sequences, eager_second.sequences)
    assert length == eager_length
    torch.testing.assert_close(torch.stack(graph.logits), torch.stack(eager.logits), atol=2e-5, rtol=1e-5)


def test_buffers_that_grow_are_recorded_anew(machine: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("hf_longctx.sharing.layers.ROOM", 8)
    model = tiny()
    truth = stock_batch(model, max_new_tokens=40, do_sample=False)[:, -40:]
    watched = machine(model)
    with shared_prefix(model, DOCUMENT) as prefix:
        out = prefix.generate(IDS, attention_mask=MASK, max_new_tokens=40, do_sample=False)
        same(out[:, -40:], truth)
        assert watched.recorded == 4  # 7 + 8, 15 + 8, 23 + 11, and the 46 that there can be
        cache = prefix.cache()
        prefix.generate(IDS, attention_mask=MASK, past_key_values=cache, max_new_tokens=5, do_sample=False)
        assert cache.layers[0].keys.shape[2] == 7 + 4  # no more than there can be


def test_samples_beams_and_single_questions_come_from_a_graph(machine: Any) -> None:
    model = tiny()
    settings: dict[str, Any] = {"do_sample": True, "max_new_tokens": 9, "num_return_sequences": 5}
    beams: dict[str, Any] = {**GREEDY, "num_beams": 3}
    torch.manual_seed(3)
    stock = model.generate(DOCUMENT[None], **settings)[:, len(DOCUMENT) :]
    searched = stock_batch(model, **beams)
    watched = machine(model)
    with shared_prefix(model, DOCUMENT) as prefix:
        torch.manual_seed(3)
        same(prefix.generate(**settings), stock)
        assert watched.recorded == 1
        out = prefix.generate(IDS, attention_mask=MASK, **beams)
        width = out.shape[1] - IDS.shape[1]
        same(out[:, -width:], searched[:, -width:])
        agree(prefix, model, DOCUMENT, [text(1, 1)[0]])


def test_a_graph_does_not_keep_its_cache(machine: Any) -> None:
    model = tiny()
    watched = machine(model)
    with shared_prefix(model, DOCUMENT) as prefix:
        cache = prefix.cache()
        prefix.generate(IDS, attention_mask=MASK, past_key_values=cache, **GREEDY)
        ring = cache.layers[0].ring
        recorded = graphs._RECORDED[ring]
        assert recorded is not None
        assert list(recorded.output) == ["logits"]
        recorded.graph.replay = None  # the stand-in's own hold on the cache
        gone = weakref.ref(ring)
        del cache, ring, recorded
        gc.collect()
    assert watched.recorded == 1
    assert gone() is None


def test_a_graph_that_gives_something_else_is_left_out(machine: Any, caplog: pytest.LogCaptureFixture) -> None:
    model = tiny()
    truth = stock_batch(model, **GREEDY)[:, -12:]
    watched = machine(model)
    replay = watched.replay

    def wrong(found: Any, cache: Any) -> None:
        replay(found, cache)
        found.output.logits.mul_(-1)

    watched.replay = wrong
    with shared_prefix(model, DOCUMENT) as prefix:
        same(prefix.generate(IDS, attention_mask=MASK, **GREEDY)[:, -12:], truth)
    assert watched.recorded == watched.replayed == 1
    assert "its first logits are off by" in caplog.text


def test_other_caches_inside_the_block_are_no_business_of_ours(machine: Any) -> None:
    model = tiny()
    truth = model.generate(IDS, attention_mask=MASK, cache_implementation="static", **GREEDY)
    watched = machine(model)
    with shared_prefix(model, DOCUMENT):
        same(model.generate(IDS, attention_mask=MASK, cache_implementation="static", **GREEDY), truth)
        forward = graphs.graph_forward(model)
        assert forward(input_ids=IDS, attention_mask=MASK).logits.shape[:2] == IDS.shape
    assert watched.recorded == 0
