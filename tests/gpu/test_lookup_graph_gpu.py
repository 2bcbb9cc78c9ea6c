"""Look-ups decoded from a CUDA graph, and keys in pinned host memory, on a GPU."""

from __future__ import annotations

import copy
import logging
from typing import Any

import pytest
import torch
from torch import Tensor
from transformers import DynamicCache

from hf_longctx import CodeLookup, LMInfinite
from hf_longctx.cache import KeyValues, RetrievingLayer, Store
from hf_longctx.cache.stock import has_fixed_buffers
from hf_longctx.cache.store_row import StoreRow
from hf_longctx.generation.cuda_graph import can_replay, graph_forward
from hf_longctx.ops.codes import Centre, encode
from tests.tiny import left_padded, logits_of, text, tiny

pytestmark = pytest.mark.gpu

METHOD = CodeLookup(n_global=2, n_local=32, top_k=4, shortlist=64)
METHODS = [
    METHOD,
    CodeLookup(n_global=2, n_local=32, top_k=4, shortlist=64, gate_margin=0.5),
    CodeLookup(n_global=2, n_local=32, top_k=4, shortlist=64, gate=None),
    CodeLookup(n_global=2, n_local=32, top_k=4, shortlist=64, gate="count"),
    CodeLookup(n_global=2, n_local=32, top_k=4, shortlist=64, gate="heads", heads=[[0, 0], [0, 3], [1, 1]]),
    CodeLookup(n_global=2, n_local=32, top_k=4, by="keys"),
    LMInfinite(n_global=2, n_local=32, top_k=4, top_k_from_layer=0),
]
NAMES = ["signs", "margin", "no_gate", "count", "heads", "keys", "top_k"]
each_method = pytest.mark.parametrize("method", METHODS, ids=NAMES)
G = 3


def texts(B: int, S: int, D: int, dtype: torch.dtype) -> KeyValues:
    random = torch.Generator("cuda").manual_seed(D)
    k, v = (torch.randn(B, G, S, D, generator=random, device="cuda").to(dtype) for _ in range(2))
    pos = torch.arange(S, device="cuda").expand(B, -1).contiguous()
    return KeyValues(k, v, pos, pos)


def part(x: KeyValues, start: int, stop: int) -> KeyValues:
    assert x.column is not None
    at = slice(start, stop)
    return KeyValues(x.k[:, :, at], x.v[:, :, at], x.pos[:, at], x.column[:, at])


@pytest.mark.parametrize("on_host", [False, True], ids=["device", "host"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16], ids=str)
@pytest.mark.parametrize("D", [64, 96, 128, 256])
def test_tokens_kept_by_counters_are_those_kept_by_torch(D: int, dtype: torch.dtype, on_host: bool) -> None:
    """Across the border of a page, with a row that waits."""
    from hf_longctx.ops.kernels.triton_pages import gather

    S, start = 8200, 8185
    x = texts(2, S, D, dtype)
    x.pos[1, start::3] = -1
    ours, plain = (Store([StoreRow(256, paged=True, on_host=on_host) for _ in range(2)]) for _ in range(2))
    for store in (ours, plain):
        store.append(part(x, 0, start), True)
    for t in range(start, S):
        new = part(x, t, t + 1)
        assert new.column is not None
        ours.begin_steps()
        assert ours.addresses is not None
        ours.addresses.step(new.k, new.v, new.pos, new.column[:1], (new.pos >= 0).long())
        plain.append(new, True)
    for one, other in zip(ours.rows, plain.rows, strict=True):
        assert one.filled == other.filled
        for name in ("k", "v", "pos", "column", "words", "size"):
            mine, its = (getattr(row, name).cut(8180, row.filled) for row in (one, other))
            assert torch.equal(mine, its), (name, (mine != its).sum())
    pages = ours.pages()
    assert pages is not None
    table = torch.randint(-1, 8190, (2, 2 * G, 3, 700), device="cuda")
    for which in ("k", "v"):
        got = gather(getattr(pages, which), table, G, D, dtype)
        held = (getattr(row, which) for row in plain.rows)
        wanted = torch.stack([held_row.take(table[b].clamp(min=0)) for b, held_row in enumerate(held)])
        assert torch.equal(got, wanted.masked_fill(table[..., None] < 0, 0))


def test_codes_of_the_kernel_are_torch_s() -> None:
    for D in (64, 128, 256):
        x = texts(1, 700, D, torch.float32)
        store = Store([StoreRow(256, paged=True)])
        store.append(part(x, 0, 300), False)
        for t in range(300, 400):
            store.begin_steps()
            new = part(x, t, t + 1)
            assert store.addresses is not None
            assert new.column is not None
            store.addresses.step(new.k, new.v, new.pos, new.column, (new.pos >= 0).long())
        words, size = encode(x.k[0, :, 300:400], Centre.of(x.k[0, :, :256]))
        row = store.rows[0]
        assert torch.equal(row.words.cut(300, 400), words)
        assert torch.equal(row.size.cut(300, 400), size)


def grown(model: Any, rows: int, tokens: int, ids: Tensor) -> DynamicCache:
    cache = DynamicCache(config=model.config)
    logits_of(model, ids[:rows, :tokens], past_key_values=cache)
    return cache


@each_method
def test_replayed_steps_are_the_eager_ones_across_a_page_after_reorder_and_in_a_second_turn(
    method: Any, caplog: Any
) -> None:
    model = tiny().cuda()
    ids = text(2, 8300).cuda()
    with method.on(model), torch.no_grad(), caplog.at_level(logging.INFO, "hf_longctx"):
        eager, cache = (grown(model, 2, 8180, ids) for _ in range(2))
        if not has_fixed_buffers(cache):
            pytest.skip("look-ups are not decoded from a graph in this version")
        assert can_replay(model, cache)
        forward = graph_forward(model)

        def step(t: int) -> None:
            new = ids[:, t : t + 1]
            got = forward(input_ids=new, past_key_values=cache, use_cache=True).logits
            wanted = logits_of(model, new, past_key_values=eager)
            torch.testing.assert_close(got, wanted, rtol=1e-3, atol=1e-3, msg=lambda m: f"token {t}: {m}")

        for t in range(8180, 8210):  # 8192 begins a page
            step(t)
        assert caplog.text.count("recorded a decoding step") == 1
        for held in (eager, cache):
            held.reorder_cache(torch.tensor([1, 1], device="cuda"))
        for t in range(8210, 8220):
            step(t)
        assert caplog.text.count("recorded a decoding step") == 1, "rows are chosen again in place"
        for held in (eager, cache):
            logits_of(model, ids[:, 8220:8250], past_key_values=held)
        for t in range(8250, 8260):
            step(t)
        assert caplog.text.count("recorded a decoding step") == 2, "one for each turn"
        assert "without a CUDA graph" not in caplog.text
        for one, other in zip(cache.layers, eager.layers, strict=True):
            assert [row.filled for row in one.everything.rows] == [row.filled for row in other.everything.rows]


@each_method
def test_generate_with_padding_gives_eagers_tokens(method: Any) -> None:
    model = tiny().cuda()
    ids, mask = (x.cuda() for x in left_padded([text(1, n, seed=n)[0] for n in (400, 330, 310)]))
    with method.on(model):
        settings: dict[str, Any] = {"attention_mask": mask, "max_new_tokens": 60, "do_sample": False}
        graph = model.generate(ids, **settings)
        assert torch.equal(graph, model.generate(ids, disable_compile=True, **settings))


@pytest.mark.parametrize(
    "method",
    [
        CodeLookup(n_global=2, n_local=32, top_k=4, shortlist=64, on_host=True),
        CodeLookup(n_global=2, n_local=32, top_k=4, by="keys", on_host=True),
        LMInfinite(n_global=2, n_local=32, top_k=4, top_k_from_layer=0, keys_on_host=True),
    ],
    ids=["signs", "keys", "top_k"],
)
def test_keys_on_the_host_give_the_logits_of_the_device_bit_for_bit(method: Any, monkeypatch: Any) -> None:
    model, ids = tiny().cuda(), text(2, 8300).cuda()

    def read() -> tuple[Tensor, DynamicCache]:
        cache, steps, start = DynamicCache(), [], 0
        for size in (4000, 4180, 1, 1, 1, 20, 60):
            steps.append(logits_of(model, ids[:, start : start + size], past_key_values=cache))
            start += size
            if size == 4180:
                cache = copy.deepcopy(cache)
        return torch.cat(steps, 1), cache

    with method.on(model):
        host, cache = read()
        held = [piece for layer in cache.layers for row in layer.everything.rows for piece in row.k.pieces]
        assert all(piece.is_pinned() for piece in held)

        def on_device(*args: Any, **more: Any) -> RetrievingLayer:
            return RetrievingLayer(*args[:4], **{k: v for k, v in more.items() if k != "on_host"})

        for place in ("code_lookup", "lm_infinite"):
            monkeypatch.setattr(f"hf_longctx.methods.{place}.RetrievingLayer", on_device)
        device = read()[0]
    assert torch.equal(host, device), (host - device).abs().max()
