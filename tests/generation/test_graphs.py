"""Decoding from a graph, the bookkeeping: a stand-in for a CUDA graph records and replays on the CPU."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from transformers import DynamicCache

import hf_longctx
from hf_longctx import LMInfinite, StreamingLLM
from hf_longctx.cache import SinkWindowLayer
from hf_longctx.generation import cuda_graph as graphs
from tests.tiny import left_padded, text, tiny

METHODS = {"lm_infinite": LMInfinite(n_global=3, n_local=8), "streaming_llm": StreamingLLM(n_sink=3, window=8)}


@pytest.mark.parametrize("family", ["llama", "qwen3", "smollm3", "gpt_neox"])
@pytest.mark.parametrize("method", METHODS.values(), ids=METHODS)
def test_generate_replays_and_gives_eagers_tokens_in_several_turns(method: Any, family: str, machine: Any) -> None:
    model = tiny(family)
    ids, mask = left_padded([text(1, n, seed=n)[0] for n in (20, 7, 13)])
    more = text(3, 5, seed=9)
    with method.on(model):
        watched, found = machine(model), []
        for off in (False, True):
            settings: dict[str, Any] = {"do_sample": False, "disable_compile": off, "return_dict_in_generate": True}
            first = model.generate(ids, attention_mask=mask, max_new_tokens=15, output_logits=True, **settings)
            turn = torch.cat([first.sequences, more], 1)
            turn_mask = torch.cat([mask, mask.new_ones(3, turn.shape[1] - mask.shape[1])], 1)
            cache = first.past_key_values
            second = model.generate(turn, attention_mask=turn_mask, past_key_values=cache, max_new_tokens=9, **settings)
            found.append((first, second, cache.get_seq_length()))
    assert watched.recorded == 2
    assert watched.replayed == 13 + 7  # all but the first token of a turn, which turns the cache into a ring
    (graph, graph_second, length), (eager, eager_second, eager_length) = found
    assert torch.equal(graph.sequences, eager.sequences)
    assert torch.equal(graph_second.sequences, eager_second.sequences)
    assert length == eager_length
    torch.testing.assert_close(torch.stack(graph.logits), torch.stack(eager.logits), atol=2e-5, rtol=1e-5)


def test_a_ring_that_grows_is_recorded_anew(machine: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("hf_longctx.cache.rolling.ROOM", 4)
    model, ids = tiny(), text(2, 5)
    with LMInfinite(n_global=2, n_local=30).on(model):
        watched = machine(model)
        ours = model.generate(ids, max_new_tokens=50, do_sample=False)
        assert watched.recorded == 3  # 10, 20 and 30 columns
        assert torch.equal(ours, model.generate(ids, max_new_tokens=50, do_sample=False, disable_compile=True))


def test_the_step_before_a_recording_reads_as_many_columns(machine: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """What a recording needs is compiled by then: compiling, which may not happen meanwhile, follows from sizes."""
    keep, read = SinkWindowLayer.keep, list[Any]()

    def counted(layer: Any, new: Any) -> Any:
        found = keep(layer, new)
        if layer.ring is not None:
            read.append(len(found))
        return found

    def recording(*args: Any) -> Any:
        read.append("recorded")
        return record(*args)

    monkeypatch.setattr("hf_longctx.cache.rolling.ROOM", 4)
    monkeypatch.setattr(SinkWindowLayer, "keep", counted)
    model = tiny(num_hidden_layers=1)
    with LMInfinite(n_global=2, n_local=30).on(model):
        machine(model)
        record = graphs._record
        monkeypatch.setattr(graphs, "_record", recording)
        model.generate(text(2, 5), max_new_tokens=40, do_sample=False)
    at = [i for i, one in enumerate(read) if one == "recorded"]
    assert [(read[i - 1], read[i + 1]) for i in at] == [(10, 10), (20, 20), (30, 30)]


def test_a_stream_replays_and_records_anew_for_every_answer(machine: Any) -> None:
    model = tiny()
    with METHODS["lm_infinite"].on(model):
        watched = machine(model)
        plain = hf_longctx.stream(model, range(5, 30), chunk=7, compile=False)
        ours = hf_longctx.stream(model, range(5, 30), chunk=7)
        for _ in range(2):
            tokens = [list(r.generate(max_new_tokens=12, do_sample=False, eos_token_id=None)) for r in (plain, ours)]
            assert tokens[0] == tokens[1]
            for reader in (plain, ours):
                reader.read([7, 8, 9])
        assert watched.recorded == 2
        assert ours.position == plain.position
        torch.testing.assert_close(ours.logits, plain.logits, atol=2e-5, rtol=1e-5)


@pytest.mark.parametrize("before", range(4))  # tokens outside of inference mode: a ring, then a recording, then replays
@pytest.mark.parametrize("method", METHODS.values(), ids=METHODS)
def test_a_graph_is_recorded_again_where_it_could_not_be_given_its_inputs(
    method: Any, before: int, machine: Any
) -> None:
    model, ids = tiny(), text(1, 20)[0]
    with method.on(model):
        machine(model)
        found = []
        for mode in (torch.inference_mode, torch.no_grad):
            tokens = hf_longctx.stream(model, ids).generate(do_sample=False)
            said = [next(tokens) for _ in range(before + 1)]
            with mode():
                said += [next(tokens) for _ in range(5)]
            found.append([*said, *(next(tokens) for _ in range(5))])
    assert found[0] == found[1]


def test_a_model_that_cannot_be_recorded_goes_on_as_it_is(machine: Any, caplog: pytest.LogCaptureFixture) -> None:
    model, ids = tiny(), text(2, 20)
    with METHODS["lm_infinite"].on(model):
        truth = model.generate(ids, max_new_tokens=12, do_sample=False)
        watched = machine(model)
        watched.refuses = True
        assert torch.equal(model.generate(ids, max_new_tokens=12, do_sample=False), truth)
    assert watched.recorded == watched.replayed == 0
    assert caplog.text.count("decoding continues without a CUDA graph") == 1


def test_a_graph_that_gives_something_else_is_left_out(machine: Any, caplog: pytest.LogCaptureFixture) -> None:
    model, ids = tiny(), text(2, 20)
    with METHODS["lm_infinite"].on(model):
        truth = model.generate(ids, max_new_tokens=12, do_sample=False)
        watched = machine(model)
        replay = watched.replay

        def wrong(found: Any, cache: Any) -> None:
            replay(found, cache)
            found.output.logits.mul_(-1)

        watched.replay = wrong
        assert torch.equal(model.generate(ids, max_new_tokens=12, do_sample=False), truth)
    assert watched.recorded == watched.replayed == 1
    assert "its first logits are off by" in caplog.text


def test_only_what_a_graph_can_give_comes_from_one(machine: Any) -> None:
    model, ids = tiny(), text(2, 20)
    with METHODS["lm_infinite"].on(model):
        watched = machine(model)
        model.generate(ids, max_new_tokens=6, do_sample=True)
        assert watched.recorded == 1
        model.generate(ids, max_new_tokens=6, num_beams=2, do_sample=False)
        states = model.generate(ids, max_new_tokens=6, output_hidden_states=True, return_dict_in_generate=True)
        assert len(states.hidden_states) == 6
        model.generate(ids, max_new_tokens=6, use_cache=False)
        assert watched.recorded == 1
    with LMInfinite(n_local=6, top_k=2, top_k_from_layer=0).on(model):
        model.generate(ids, max_new_tokens=6)  # its cache grows
        assert watched.recorded == 1


def test_a_stock_model_is_asked_what_it_always_was(monkeypatch: pytest.MonkeyPatch) -> None:
    model = tiny()
    cache = DynamicCache(config=model.config)
    assert not model._valid_auto_compile_criteria({"past_key_values": cache}, model.generation_config)
    assert not graphs.can_replay(model, cache)
    with METHODS["lm_infinite"].on(model):
        assert not graphs.can_replay(model, cache)  # no GPU
