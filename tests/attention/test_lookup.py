"""Looking tokens up: choices against loops, the gate, and LM-Infinite's look-up as it was before."""

# B rows, H query heads, G key/value heads, S keys, T tables, K slots of a table
from __future__ import annotations

import dataclasses
from typing import Any

import pytest
import torch
from torch import Tensor
from transformers import DynamicCache
from transformers.models.llama.modeling_llama import apply_rotary_pos_emb

from hf_longctx import CodeLookup, LMInfinite
from hf_longctx.attention import found, lookup
from hf_longctx.attention.caches import adopt_all
from hf_longctx.attention.lookup import choose
from hf_longctx.attention.state import STATE
from hf_longctx.cache import FullLayer, KeyValues, Store
from tests.attention.far_keys import FIRST, NEAR, B, G, H, S, problem, sharing
from tests.contract.registry import close, differs
from tests.families.census.building import build
from tests.reference.lm_infinite_top_k import OneMatrix
from tests.reference.lookup import best, code_scores
from tests.tiny import left_padded, logits_in_parts, logits_of, text, tiny

K = 4


def by_loops(q: Tensor, keys: KeyValues, by: str, per: str, shortlist: int) -> list[Any]:
    """The sets of slots for every row, table and query."""
    rows = []
    for b in range(B):
        real = (keys.pos[b] >= 0).nonzero()[:, 0]
        pos = keys.pos[b, real].tolist()
        tables = []
        for some in sharing(per):
            k = keys.k[b, some[0] // 3, real].double()
            queries = [q[b, h, real].double() for h in some]
            exact = torch.stack([one @ k.T for one in queries]).amax(0).tolist()
            coded = torch.stack([code_scores(one, k, NEAR) for one in queries]).amax(0).tolist()
            chosen = {}
            for i, p in enumerate(pos):
                among = [j for j, at in enumerate(pos) if at >= FIRST and p - at >= NEAR]
                if by == "signs":
                    among = best([(coded[i][j], j) for j in among], shortlist)
                chosen[int(real[i])] = {int(real[j]) for j in best([(exact[i][j], j) for j in among], K)}
            tables.append([chosen.get(i, set()) for i in range(S)])
        rows.append(tables)
    return rows


@pytest.mark.parametrize("per", ["group", "head"])
@pytest.mark.parametrize("by", ["keys", "signs"])
@pytest.mark.parametrize("padded", [False, True])
def test_choices_are_those_of_loops(by: str, per: str, padded: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    q, keys = problem(padded)
    wanted = by_loops(q, keys, by, per, 9)
    settings: Any = {
        "k": K,
        "near": NEAR,
        "after_B": keys.first(FIRST, padded).latest(),
        "by": by,
        "per": per,
        "shortlist": 9,
    }
    # all at once, a few at a time, and with each query's shortlist gathered
    for pairs, scored in ((lookup.PAIRS, lookup.ALL_ON_CPU), (100, lookup.ALL_ON_CPU), (lookup.PAIRS, 0)):
        monkeypatch.setattr(lookup, "PAIRS", pairs)
        monkeypatch.setattr(lookup, "ALL_ON_CPU", scored)
        table = choose(q, keys.pos, Store.of(keys, NEAR if by == "signs" else 0), **settings)
        assert table.shape == (B, G if per == "group" else H, S, K)
        got = [[[set(slots) - {-1} for slots in one] for one in row] for row in table.tolist()]
        assert got == wanted
        assert table[:, :, FIRST + NEAR - 1].eq(-1).all(), "no token is far enough yet"
        assert (table[0, 0, -1] >= 0).all()


def test_a_shortlist_of_all_equals_the_choice_by_keys() -> None:
    q, keys = problem(False)
    settings: Any = {"k": K, "near": NEAR, "after_B": keys.first(FIRST, False).latest()}
    by_keys = choose(q, keys.pos, Store.of(keys), **settings)
    by_signs = choose(q, keys.pos, Store.of(keys, NEAR), by="signs", shortlist=S, **settings)
    far = torch.arange(S) >= NEAR + FIRST
    assert torch.equal(by_signs[:, :, far].sort(-1).values, by_keys[:, :, far].sort(-1).values)


def test_equal_keys_are_not_all_in_a_shortlist_that_has_no_room_for_them() -> None:
    q, keys = problem(False)
    keys.k[:, :, FIRST + 4 : FIRST + 8] = keys.k[:, :, FIRST + 4 : FIRST + 5]  # tokens that occur again
    settings: Any = {"k": K, "near": NEAR, "after_B": keys.first(FIRST, False).latest(), "by": "signs", "shortlist": 5}
    store = Store.of(keys, NEAR)
    whole = choose(q, keys.pos, store, **settings)
    alone = torch.cat([choose(q[:, :, i : i + 1], keys.pos[:, i : i + 1], store, **settings) for i in range(S)], 2)
    value = torch.nn.functional.pad(torch.arange(S), (0, 1), value=-1)
    value[FIRST + 4 : FIRST + 8] = FIRST + 4  # which of them is chosen is all the same
    assert torch.equal(value[whole].sort(-1).values, value[alone].sort(-1).values)


def test_fewer_tokens_than_asked_for_and_none_at_all() -> None:
    q, keys = problem(False)
    short = KeyValues(keys.k[:, :, :2], keys.v[:, :, :2], keys.pos[:, :2])
    settings: Any = {"k": 5, "near": 1, "after_B": short.first(0, False).latest()}
    assert choose(q[:, :, :2], short.pos, Store.of(short), **settings)[0, 0].tolist() == [[-1, -1], [0, -1]]
    none = KeyValues(short.k, short.v, torch.full_like(short.pos, -1))
    assert choose(q[:, :, :2], none.pos, Store.of(none), **settings).eq(-1).all()


@pytest.mark.parametrize("family", ["llama", "gemma3", "gpt_neox"])
@pytest.mark.parametrize("padded", [False, True])
def test_lm_infinite_s_look_up_is_what_it_was(family: str, padded: bool) -> None:
    settings: Any = {"n_global": 2, "n_local": 6, "top_k": 3, "top_k_from_layer": 0}
    ids, mask = left_padded([text(1, n, seed=n)[0] for n in ((31, 18) if padded else (31, 31))])
    real = mask[..., None].bool()
    model = tiny(family).requires_grad_(True)

    def run(method: Any) -> list[Tensor]:
        with method.on(model):
            model.zero_grad()
            logits = model(ids, attention_mask=mask, use_cache=False).logits.masked_fill(~real, 0)
            logits.square().mean().backward()
            cached = logits_in_parts(model, ids, (25, 26, 31), DynamicCache(), mask).masked_fill(~real, 0)
            return [logits.detach(), cached, *(p.grad.clone() for p in model.parameters())]

    for ours, before in zip(run(LMInfinite(**settings)), run(OneMatrix(**settings)), strict=True):
        close(ours, before)
    without = LMInfinite(n_global=2, n_local=6)
    differs(run(LMInfinite(**settings))[0], run(without)[0])


@pytest.mark.parametrize("family", ["gemma2", "gpt_oss", "falcon_h1", "gemma4_text"])
def test_caps_sinks_recurrences_and_keys_of_other_layers(family: str) -> None:
    model, ids = build(family), text(2, 40, seed=3)
    stock = logits_of(model, ids)
    with CodeLookup(n_global=2, n_local=7, top_k=3, shortlist=6).on(model):
        full = logits_of(model, ids, use_cache=False)
        close(logits_in_parts(model, ids, (25, 26, 40), DynamicCache(config=model.config)), full)
    differs(full, stock)


@pytest.mark.parametrize("family", ["minicpm3", "deepseek_v3"])
def test_attention_that_changes_its_keys_gets_all_that_lm_infinite_looks_up(family: str) -> None:
    model, ids = build(family), text(2, 40, seed=3)
    settings: Any = {"n_global": 2, "n_local": 7, "top_k": 3, "top_k_from_layer": 0}
    found = []
    for method in (LMInfinite(**settings), OneMatrix(**settings)):
        with method.on(model):
            cache = DynamicCache(config=model.config)
            found.append(logits_in_parts(model, ids, (25, 26, 40), cache))
            close(found[-1], logits_of(model, ids, use_cache=False))
            assert [type(layer) for layer in cache.layers] == [FullLayer] * len(cache.layers)
            state = vars(model.model)[STATE]
            assert state.joined
            early = DynamicCache(config=model.config)  # a cache that is handed out before that is known
            state.joined = False
            adopt_all(state, early)
            state.joined = True
            close(logits_in_parts(model, ids, (25, 26, 40), early), found[-1])
    close(*found)


def test_the_gate_keeps_what_comes_up_to_the_window(monkeypatch: pytest.MonkeyPatch) -> None:
    kept: list[tuple[int, int]] = []
    gate = found.gated

    def watched(what: Any, window: Any, margin: float) -> Any:
        after = gate(what, window, margin)
        kept.append((int((what.table_BTLK >= 0).sum()), int((after.table_BTLK >= 0).sum())))
        assert torch.equal(after.table_BTLK, gate(after, window, margin).table_BTLK), "what is kept is kept again"
        return after

    monkeypatch.setattr("hf_longctx.methods.code_lookup.gated", watched)
    model, ids = tiny(), text(2, 60)
    with CodeLookup(n_global=2, n_local=8, top_k=4).on(model):
        gated = logits_of(model, ids)
    with CodeLookup(n_global=2, n_local=8, top_k=4, gate=None).on(model):
        differs(logits_of(model, ids), gated)
    before, after = map(sum, zip(*kept, strict=True))
    assert 0 < after < 0.9 * before


@torch.no_grad()
def test_a_token_counts_if_its_score_is_no_further_below_the_window_than_the_margin() -> None:
    """Scores by transformers' own projections and rotation; found tokens are read at `read_at`, the window as it is."""
    model, ids, n_local, read_at = tiny(num_hidden_layers=1), text(1, 60), 12, 5
    layer, heads = model.model.layers[0], model.config.num_attention_heads
    shared = heads // model.config.num_key_value_heads
    x = layer.input_layernorm(model.model.embed_tokens(ids))
    q, k = (
        project(x).unflatten(-1, (-1, layer.self_attn.head_dim)).transpose(1, 2).double()
        for project in (layer.self_attn.q_proj, layer.self_attn.k_proj)
    )
    here = torch.arange(60)
    turned = [model.model.rotary_emb(q, at[None]) for at in (here, torch.full_like(here, read_at))]
    true_q, true_k = apply_rotary_pos_emb(q, k, *turned[0])
    moved_q, _ = apply_rotary_pos_emb(q, k, *turned[1])
    scale = layer.self_attn.head_dim**-0.5
    scores = true_q @ true_k.repeat_interleave(shared, 1).mT * scale
    distance = here[:, None] - here
    whole = scores.masked_fill((distance < 0) | (distance >= n_local), float("-inf")).logsumexp(-1)
    far = moved_q @ k.repeat_interleave(shared, 1).mT * scale

    tables: dict[Any, Tensor] = {}
    method = CodeLookup(n_global=2, n_local=n_local, top_k=4, read_at=read_at)
    for margin in (None, -1.0, -0.02, 0.0, 0.3, 1.0, 40.0):
        gate: dict[str, Any] = {"gate": None} if margin is None else {"gate_margin": margin}
        with dataclasses.replace(method, **gate).on(model):
            vars(model.model)[STATE].watching = lambda _, table, key=margin: tables.update({key: table})
            logits_of(model, ids, use_cache=False)
    every = tables.pop(None)
    kept = []
    for margin, table in tables.items():
        above = (far - (whole[..., None] - margin)).unflatten(1, (-1, shared)).amax(2)  # the best head's
        counts = above.gather(-1, every.clamp(min=0)) >= 0
        assert torch.equal(table, every.masked_fill(~counts, -1))
        kept.append(int((table >= 0).sum()))
    assert 0 == kept[0] < kept[1] <= kept[2] < kept[3] < kept[4] < kept[5] == int((every >= 0).sum())


@pytest.mark.parametrize("padded", [False, True])
@pytest.mark.parametrize("n_first", [0, FIRST, 100])
def test_the_number_of_tokens_searched_is_that_of_the_candidates(padded: bool, n_first: int) -> None:
    _, keys = problem(padded)
    got = found.searched(keys.pos, NEAR, keys.first(n_first, padded).latest())
    for pos, mine in zip(keys.pos.tolist(), got.tolist(), strict=True):
        real = sorted(p for p in pos if p >= 0)
        assert mine == [sum(q >= 0 and q - p >= NEAR for p in real[n_first:]) for q in pos]


def test_found_tokens_count_by_how_many_were_searched() -> None:
    """One key that scores s among n: its share of the softmax is that of a score of s - log n."""
    model, ids = tiny(num_hidden_layers=1), text(1, 40)
    method = CodeLookup(n_global=0, n_local=39, top_k=1, shortlist=1, by="keys")
    seen = {}
    for gate in ("count", None):
        with dataclasses.replace(method, gate=gate).on(model):
            seen[gate] = logits_of(model, ids)
    close(seen["count"], seen[None])  # the last query searches one token: the log of 1
    with dataclasses.replace(method, n_local=30, gate="count").on(model):
        fewer = logits_of(model, ids)
    with dataclasses.replace(method, n_local=30, gate=None).on(model):
        differs(logits_of(model, ids)[:, -1], fewer[:, -1])


def test_a_fact_far_back_is_looked_up_that_the_window_has_lost() -> None:
    """With queries that look for one far key, its value comes back, whatever lies between."""
    model, ids = tiny(), text(1, 200)
    changed = ids.clone()
    changed[0, 50] = (ids[0, 50] + 7) % 50 + 5
    seen = {}
    for name, method in {
        "window": LMInfinite(n_global=2, n_local=16),
        "codes": CodeLookup(n_global=2, n_local=16, gate=None),
    }.items():
        with method.on(model):
            seen[name] = (logits_of(model, ids)[0, -16:] - logits_of(model, changed)[0, -16:]).abs().amax()
    assert seen["window"] == 0
    assert seen["codes"] > 1e-3
