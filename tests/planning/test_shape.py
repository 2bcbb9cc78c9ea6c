"""What is read from a config against the models themselves: parameters, and the bytes their caches hold."""

from __future__ import annotations

import dataclasses
from typing import Any

import pytest
import torch
from transformers import DynamicCache, Qwen3MoeConfig

from hf_longctx import CodeLookup, InfLLM, LMInfinite, LongContextMethod, PositionFree, StreamingLLM
from hf_longctx.attention.without import without_look_ups
from hf_longctx.ops.pages import PAGE
from hf_longctx.planning import account
from hf_longctx.planning.hardware import MACHINES
from hf_longctx.planning.options import as_read
from hf_longctx.planning.predict import Job, decode_seconds, kv_bytes, replayed_bytes
from hf_longctx.planning.shape import build, measure
from tests.tiny import CLASSES, FAMILIES, MORE_FAMILIES, text, tiny

EVERY = (*FAMILIES, *MORE_FAMILIES)
assert set(EVERY) == set(CLASSES)


def cached_bytes(model: Any, tokens: int, chunk: int) -> int:
    """What a real cache holds, ours with positions."""
    cache = DynamicCache(config=model.config)
    with torch.no_grad():
        for piece in text(2, tokens).split(chunk, dim=1):
            model(piece, past_key_values=cache)
    layers = [layer.nbytes() if hasattr(layer, "nbytes") else _stored(layer) for layer in cache.layers]
    return sum(layers)


def _stored(layer: Any) -> int:
    return sum(t.numel() * t.element_size() for t in (layer.keys, layer.values))


@pytest.mark.parametrize("family", EVERY)
def test_parameters_are_the_model_s_with_tied_ones_once(family: str) -> None:
    model = tiny(family)
    assert measure(build(model.config)).parameters == sum(p.numel() for p in model.parameters())


def test_untied_weights_count_twice() -> None:
    tied, untied = (measure(build(tiny("llama", tie_word_embeddings=tie).config)) for tie in (True, False))
    assert untied.parameters == tied.parameters + tied.lm_head
    assert untied.active == tied.active


@pytest.mark.parametrize("family", EVERY)
@pytest.mark.parametrize(
    "method", [None, LMInfinite(n_local=12, n_global=3),
               LMInfinite(n_local=12, n_global=3, top_k=2, top_k_from_layer=1), StreamingLLM(window=9, n_sink=2)],
    ids=["stock", "lm_infinite", "top_k", "streaming_llm"],
)  # fmt: skip
@pytest.mark.parametrize("tokens", [7, 40])
def test_kv_bytes_are_those_of_the_real_cache(
    family: str, method: LongContextMethod | None, tokens: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("hf_longctx.cache.growing.PIECE", 1)  # or a store has room for more than it holds
    monkeypatch.setattr("hf_longctx.cache.growing.LEAST", 1)
    model = tiny(family)
    meta = build(model.config)
    shape = measure(meta)
    if method is None:
        held = cached_bytes(model, tokens, 10)
    else:
        shape = as_read(method, meta, shape)[1]
        with method.on(model):
            held = cached_bytes(model, tokens, 10)
    job = Job(tokens=tokens, batch=2, dtype_bytes=4, machine=MACHINES["cpu"], memory_bytes=2**30)
    # the first tokens lie beside the window's until they leave it, so a short text may hold them twice
    slack = 2 * shape.n_layers * 3 * (2 * 4 * 16 * 4 + 8) if method is not None and tokens < 12 else 0
    assert kv_bytes(shape, job) <= held <= kv_bytes(shape, job) + slack


def test_the_bytes_of_a_store_with_codes_are_those_of_the_real_cache(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("hf_longctx.cache.growing.PIECE", 16)  # or a short text has room for far more than it holds
    monkeypatch.setattr("hf_longctx.cache.growing.LEAST", 16)
    model = tiny("qwen3")
    for by in ("signs", "keys"):
        method = CodeLookup(n_global=3, n_local=12, top_k=2, by=by)
        shape = as_read(method, build(model.config), measure(build(model.config)))[1]
        with method.on(model):
            held = cached_bytes(model, 300, 100)
        job = Job(tokens=300, batch=2, dtype_bytes=4, machine=MACHINES["cpu"], memory_bytes=2**30)
        assert kv_bytes(shape, job) <= held <= 1.1 * kv_bytes(shape, job)
        assert not shape.bounded
        assert decode_seconds(shape, job)[1] is None, "no graph"


@pytest.mark.parametrize("by", ["signs", "keys"])
def test_the_bytes_that_a_look_up_reads_are_those_of_the_real_store(by: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("hf_longctx.cache.growing.PIECE", 1)  # or a store has room for more than it holds
    monkeypatch.setattr("hf_longctx.cache.growing.LEAST", 1)
    model, cache = tiny("qwen3", head_dim=40), DynamicCache()
    method = CodeLookup(n_global=3, n_local=12, top_k=2, by=by, shortlist=20)
    (layer, _), *_ = as_read(method, build(model.config), measure(build(model.config)))[1].layers
    with method.on(model), torch.no_grad():
        model.model(text(1, 100), past_key_values=cache)
    row = cache.layers[0].everything.rows[0]
    read = (row.words, row.size, row.pos) if by == "signs" else (row.k, row.pos)
    held = sum(piece.nbytes for growing in read for piece in growing.pieces)
    shortlist = 20 * row.k.pieces[0].nbytes if by == "signs" else 0
    window = 2 * row.k.pieces[0].nbytes + account.POSITION_BYTES
    job = Job(tokens=100, dtype_bytes=4, machine=MACHINES["h100"], memory_bytes=2**30)
    assert replayed_bytes(layer, job) == held + shortlist + 3 * 14 * window, "the window's keys are moved three times"


def test_which_look_ups_decode_from_a_graph(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(CodeLookup, "check", lambda self, decoder: None)  # as if there was a GPU
    model = tiny("qwen3")
    job = Job(tokens=100_000, dtype_bytes=2, machine=MACHINES["h100"], memory_bytes=2**30)

    def graph(method: LongContextMethod) -> float | None:
        return decode_seconds(as_read(method, build(model.config), measure(build(model.config)))[1], job)[1]

    window = graph(LMInfinite(n_local=12))
    for method in (CodeLookup(n_local=12), CodeLookup(n_local=12, by="keys"), LMInfinite(n_local=12, top_k=2)):
        found = graph(dataclasses.replace(method, **({"top_k_from_layer": 0} if method.name == "lm_infinite" else {})))
        assert window is not None
        assert found is not None
        assert window < found < 3 * window
    growing = InfLLM(n_local=8, block_size=4), PositionFree(), CodeLookup(n_local=12, on_host=True)
    assert [graph(method) for method in growing] == [None] * 3


def test_keys_on_the_host_take_no_memory_of_the_device_but_a_page(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("hf_longctx.cache.growing.PIECE", 16)
    monkeypatch.setattr("hf_longctx.cache.growing.LEAST", 16)
    monkeypatch.setattr("hf_longctx.planning.account.PAGE", 16)
    monkeypatch.setattr(CodeLookup, "check", lambda self, decoder: None)  # as if there was a GPU
    model = tiny("qwen3")
    job = Job(tokens=300, batch=2, dtype_bytes=4, machine=MACHINES["cpu"], memory_bytes=2**30)
    layers, page = 2, 16 * 2 * (2 * 8 * 4)  # of keys and values, 2 heads of 8 numbers
    for method in (
        CodeLookup(n_global=3, n_local=12, top_k=2, on_host=True),
        LMInfinite(n_global=3, n_local=12, top_k=2, top_k_from_layer=0, keys_on_host=True),
    ):
        shape = as_read(method, build(model.config), measure(build(model.config)))[1]
        with method.on(model):
            held = cached_bytes(model, 300, 100)
        on_host = layers * 2 * -(-300 // 16) * page
        assert kv_bytes(shape, job) - page <= held - on_host <= 1.1 * kv_bytes(shape, job)


def test_bytes_beyond_the_window_at_default_sizes() -> None:
    assert account.PAGE == PAGE
    model, cache = tiny(max_position_embeddings=2048, num_hidden_layers=1), DynamicCache()
    shape = as_read(CodeLookup(), build(model.config), measure(build(model.config)))[1]
    jobs = {name: Job(tokens=0, dtype_bytes=4, machine=MACHINES[name], memory_bytes=2**40) for name in ("cpu", "h100")}
    held = {}
    with CodeLookup().on(model), without_look_ups(model), torch.no_grad():
        for piece in text(1, 70_000).split(5000, dim=1):
            model.model(piece, past_key_values=cache)
            held[cache.get_seq_length()] = sum(layer.nbytes() for layer in cache.layers)
    for machine, tokens in (("cpu", 10_000), ("cpu", 20_000), ("cpu", 70_000), ("h100", 70_000)):
        predicted = kv_bytes(shape, dataclasses.replace(jobs[machine], tokens=tokens))
        assert held[tokens] / 1.15 <= predicted <= held[tokens] * 1.15


def test_layers_without_a_head_that_retrieves_are_bounded() -> None:
    model = tiny("llama")
    method = CodeLookup(n_global=3, n_local=12, top_k=2, gate="heads", heads=[[1, 0]])
    shape = as_read(method, build(model.config), measure(build(model.config)))[1]
    assert sorted((layer.kept is None, layer.top_k) for layer, _ in shape.layers) == [(False, 0), (True, 2)]
    every = as_read(CodeLookup(n_global=3, n_local=12, top_k=2), build(model.config), measure(build(model.config)))[1]
    job = Job(tokens=8192, dtype_bytes=4, machine=MACHINES["h100"], memory_bytes=2**30)
    with method.on(model), without_look_ups(model):
        held = cached_bytes(model, 8192, 4096) / 2  # of one row
    assert kv_bytes(shape, job) == pytest.approx(held, rel=0.01)
    assert kv_bytes(shape, job) < 0.51 * kv_bytes(every, job)


def test_experts_count_by_the_share_that_a_token_uses() -> None:
    config = Qwen3MoeConfig(
        hidden_size=32, intermediate_size=48, moe_intermediate_size=16, num_hidden_layers=2, num_attention_heads=4,
        num_key_value_heads=2, head_dim=8, vocab_size=61, num_experts=8, num_experts_per_tok=2,
        tie_word_embeddings=True,
    )  # fmt: skip
    shape = measure(build(config))
    experts = 2 * 8 * 3 * 32 * 16  # layers, experts, gate, up and down
    everything = shape.parameters - shape.lm_head
    assert shape.mlp == 2 * 16
    # norms are no matmuls
    assert everything - experts * 3 / 4 - shape.active == pytest.approx(2 * (2 * 32 + 2 * 8) + 32)


def test_the_model_built_from_the_config_has_no_memory() -> None:
    assert {p.device.type for p in build(tiny("qwen3").config).parameters()} == {"meta"}
