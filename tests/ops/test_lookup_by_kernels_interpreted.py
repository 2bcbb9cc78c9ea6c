"""What attention looks up by kernels is what it looks up in torch, without a GPU. Needs triton."""

from __future__ import annotations

import pytest

from tests.ops.interpreted import needs_triton, run
from tests.ops.test_lookup_interpreted import SMALL

pytestmark = needs_triton

MANY = (
    SMALL
    + """
from hf_longctx.attention import lookup
from hf_longctx.cache import KeyValues, Store, addresses, growing
from hf_longctx.cache.store_row import StoreRow
from hf_longctx.ops.kernels import triton_lookup
from hf_longctx.ops.kernels import triton_keys as K
from tests.reference.lookup import best, code_scores

growing.PIECE, addresses.DEVICES = sizes.PAGE, ("cpu",)
asked, CENTRED, FIRST, NEAR = [], 32, 4, 40

def asked_of(q, *_):
    asked.append(q.shape[2])

def by_loops(q, keys, q_pos, by, per, k, shortlist):
    # the slots of every row, table and query, as sets; a row's slots are its real tokens
    shared, found = q.shape[1] // keys.k.shape[1], []
    for b in range(len(q)):
        real, row = keys.pos[b] >= 0, []
        pos = keys.pos[b, real]
        for some in range(q.shape[1]) if per == "head" else range(0, q.shape[1], shared):
            heads = range(some, some + (1 if per == "head" else shared))
            k_SD = keys.k[b, some // shared, real].double()
            exact = torch.stack([q[b, h].double() @ k_SD.T for h in heads]).amax(0).tolist()
            coded = torch.stack([code_scores(q[b, h].double(), k_SD, CENTRED) for h in heads]).amax(0).tolist()
            table = []
            for l, p in enumerate(q_pos[b].tolist()):
                among = ((pos >= FIRST) & (pos <= p - NEAR)).nonzero()[:, 0].tolist() if p >= 0 else []
                if by == "signs":
                    among = best([(coded[l][j], j) for j in among], shortlist)
                table.append(set(best([(exact[l][j], j) for j in among], k)))
            row.append(table)
        found.append(row)
    return found

for B, H, G, per, by, L, S in (
    (2, 2, 1, "group", "signs", 1, 300), (2, 2, 1, "group", "signs", 17, 300), (1, 2, 1, "head", "signs", 16, 300),
    (1, 3, 1, "group", "signs", 40, 200), (2, 2, 1, "group", "keys", 40, 1100), (2, 2, 2, "head", "keys", 17, 300),
    (2, 2, 1, "group", "keys", 16, 1100),  # the last one is used again
):
    torch.manual_seed(L + H)
    D, k, shortlist = 32, 4, 24
    q, (k_BGSD, v) = torch.randn(B, H, L, D), torch.randn(2, B, G, S, D)
    pos = torch.arange(S).repeat(B, 1)
    pos[1:, 60:140] = -1  # padding in the middle: the second row is shorter
    pos[1:, 140:] -= 80
    keys, column = KeyValues(k_BGSD, v, pos), torch.arange(S).expand(B, -1)
    q_pos = pos[:, -L:].clone()
    q_pos[1:, : L // 3] = -1
    stores = [Store([StoreRow(CENTRED * (by == "signs"), paged=paged) for _ in range(B)]) for paged in (True, False)]
    for store in stores:
        for start, stop in ((0, S // 2), (S // 2, S)):
            at = slice(start, stop)
            store.append(KeyValues(k_BGSD[:, :, at], v[:, :, at], pos[:, at], column[:, at]), True)
    after_B = keys.first(FIRST, False).latest()
    given = {"k": k, "near": NEAR, "after_B": after_B, "by": by, "per": per, "shortlist": shortlist}
    lookup.LONG, lookup.ALL, lookup.unsupported_reason = 100, 4, asked_of
    T.AT_ONCE = 2**24 if L < 40 else 15 * B * G * 5000  # in several parts
    assert stores[0].pages() is not None
    tables = [lookup.choose(q, q_pos, store, **given) for store in stores]
    assert asked == [L], "the kernels were to do the first"
    asked.clear()
    ours, torchs = ([[[set(one) - {-1} for one in some] for some in row] for row in x.tolist()] for x in tables)
    right = by_loops(q, keys, q_pos, by, per, k, shortlist)
    # in steps of a query and with sums in fp32 a code's score may change places with the next one
    same = [a == b for x, y in zip(ours, torchs) for c, d in zip(x, y) for a, b in zip(c, d)]
    true = [a == b for x, y in zip(ours, right) for c, d in zip(x, y) for a, b in zip(c, d)]
    assert all(same) if by == "keys" else sum(same) >= 0.95 * len(same), (by, per, L, same)
    assert all(true) if by == "keys" else sum(true) >= 0.9 * len(true), (by, per, L, true)
    assert any(some for row in right for table in row for some in table)

# keys in host memory visit the device as a whole where many single ones would be fetched, and are found as those on it
from hf_longctx.cache import visiting
q, k_BGSD, v = (torch.randn(2, H, n, 32) for H, n in ((2, 17), (1, 1100), (1, 1100)))
pos = torch.arange(1100).expand(2, -1)
hosted = [Store([StoreRow(CENTRED, paged=True, on_host=on_host)]) for on_host in (True, False)]
for store in hosted:
    for at in (slice(0, 150), slice(150, 1100)):
        store.append(KeyValues(k_BGSD[:1, :, at], v[:1, :, at], pos[:1, at], pos[:1, at]), False)
    store.select([0, 0])  # rows that share a page
    last = KeyValues(*(x[..., -1:, :] for x in (k_BGSD, v)), pos[:, :1] + 1100, pos[:, :1] + 1100)
    store.append(last, False)
for reads, visits in ((220, False), (221, True)):  # of 1,101 slots
    assert (visiting.keys_on_device(hosted[0].pages(), hosted[0].rows, reads)[1] is not None) == visits
visiting.AT_MOST = 999
assert visiting.keys_on_device(hosted[0].pages(), hosted[0].rows, 221)[1] is None
visiting.AT_MOST = 2**31
calls, own = [], triton_lookup.choose
triton_lookup.choose = lambda q, pos, pages, **more: (calls.append(pages.k), own(q, pos, pages, **more))[1]
given = {"k": 4, "near": 40, "after_B": torch.full((2,), 3), "by": "signs", "per": "group", "shortlist": 24}
lookup.LONG, lookup.ALL = 100, 4
tables = [lookup.choose(q, pos[:, -17:] + 1, store, **given) for store in hosted]
assert torch.equal(*tables) and (tables[0] >= 0).any()
assert (calls[0] != hosted[0].pages().k).any() and torch.equal(calls[1], hosted[1].pages().k)
assert calls[0][0, 0] == calls[0][1, 0] and calls[0][0, 1] != calls[0][1, 1], "a shared page is copied once"
triton_lookup.choose = own

# few slots are torch's, with more queries than a few; and what it scores all at once
for queries, long, by, every, kernels in (
    (17, S, "keys", 0, False), (17, S - 1, "keys", 0, True), (17, S - 1, "signs", S / 24, False),
    (17, S - 1, "signs", S / 25, True), (16, S, "keys", 0, True), (16, S, "signs", S, True),
):
    lookup.LONG, lookup.ALL = long, every
    assert lookup._worth(queries, stores[0], by, 24) is kernels
stores[0].rows[0].on_host, lookup.LONG, lookup.ALL = True, 0, 0
assert not lookup._worth(17, stores[0], "keys", 24) and lookup._worth(17, stores[0], "signs", 24)
"""
)

A_MODEL = (
    SMALL
    + """
from transformers import DynamicCache
from hf_longctx import CodeLookup, LMInfinite
from hf_longctx.cache.store import Store
from hf_longctx.ops.kernels import decode, found, triton_found
import hf_longctx.attention.found
import hf_longctx.attention.lookup
from tests.tiny import logits_of, text, tiny

def pages(store):
    made = []
    for row in store.rows:
        kept = [getattr(row, name).cut(0, row.filled)[None] for name in ("k", "v", "pos")]
        made.append(paged(*kept[:2], kept[2][0], row.centred_by or 1, 1))
    held.append(made)
    if any(row.centred_by and row.ready is None for row in store.rows):
        return None
    fields = zip(*(one for one, _ in made))
    return type(made[0][0])(*(field[0] if isinstance(field[0], torch.dtype) else torch.cat(field) for field in fields))

def few(q, *_):
    return "several" if q.shape[2] > 1 else None

def counted(*given, **settings):
    calls.append(1)
    return wrapped(*given, **settings)

ids, model, wrapped = text(1, 60), tiny(), triton_found.decode
without = Store.pages, hf_longctx.attention.lookup.unsupported_reason, hf_longctx.attention.found.unsupported_reason
window = {"n_global": 2, "n_local": 16, "top_k": 3}
outputs = []
for method in (CodeLookup(**window, shortlist=8), CodeLookup(**window, shortlist=8, gate_margin=0.5),
               CodeLookup(**window, shortlist=8, gate=None), CodeLookup(**window, shortlist=8, gate="count"),
               CodeLookup(**window, shortlist=8, gate="heads", heads=[[0, 0], [0, 3], [1, 1]]),
               LMInfinite(**window, top_k_from_layer=0)):
    logits = []
    for kernels in (False, True):
        with method.on(model):
            cache, held, calls = DynamicCache(), [], []
            logits_of(model, ids[:, :58], past_key_values=cache)
            if kernels:
                Store.pages, triton_found.decode = pages, counted
                hf_longctx.attention.lookup.unsupported_reason = few
                hf_longctx.attention.found.unsupported_reason = lambda branches, *_: few(branches[0].q_BHLD)
            logits.append(torch.cat([logits_of(model, ids[:, i : i + 1], past_key_values=cache) for i in (58, 59)], 1))
    Store.pages, triton_found.decode = without[0], wrapped
    hf_longctx.attention.lookup.unsupported_reason, hf_longctx.attention.found.unsupported_reason = without[1:]
    assert len(calls) == 2 * model.config.num_hidden_layers
    torch.testing.assert_close(*logits, atol=1e-4, rtol=1e-4)
    outputs.append(logits[1])
first, margin, free, *gated, _ = outputs
assert all((free - one).abs().max() > 1e-3 for one in gated), "each gate has its own effect"
assert (first - margin).abs().max() > 1e-3, "the margin lets more count"
"""
)


@pytest.mark.parametrize("code", [MANY, A_MODEL], ids=["many", "a_model"])
def test_choices(code: str) -> None:
    run(code, "1")
