"""Look-ups on a GPU: codes, choices and logits are those of the CPU."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor
from transformers import DynamicCache

from hf_longctx import CodeLookup
from hf_longctx.attention import lookup as lookup_of
from hf_longctx.attention.lookup import choose
from hf_longctx.cache import KeyValues, Store
from hf_longctx.cache.store_row import StoreRow
from hf_longctx.ops.codes import Centre, encode, score
from hf_longctx.ops.kernels import bits, coding, found, pages
from hf_longctx.ops.kernels.coding import coded
from hf_longctx.ops.kernels.lookup import unsupported_reason
from hf_longctx.ops.paged import paged
from tests.ops.lookups import Lookup, agree
from tests.tiny import left_padded, logits_of, text, tiny

pytestmark = pytest.mark.gpu
CARD = torch.cuda.get_device_capability() if torch.cuda.is_available() else (0, 0)
bits_are_multiplied = pytest.mark.skipif(
    not bits.FROM <= CARD < bits.BELOW, reason="needs tensor cores that multiply bits (compute capability 8.0 to 9.0)"
)

SETTINGS: dict[str, dict[str, Any]] = {
    "signs": {}, "margin": {"gate_margin": 0.5}, "strict": {"gate_margin": -0.3},
    "keys": {"by": "keys", "per": "head", "gate": None}, "count": {"gate": "count"},
    "heads": {"gate": "heads", "heads": [[0, 0], [1, 1]]},
    "each_of_some_heads": {"gate": "heads", "heads": [[0, 0], [0, 3], [1, 2]], "by": "keys", "per": "head"},
}  # fmt: skip


@pytest.mark.parametrize("D", [64, 80, 96, 128, 256])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_codes_are_equal_on_cpu_and_gpu(D: int, dtype: torch.dtype) -> None:
    k = torch.randn(4, 3000, D, generator=torch.Generator().manual_seed(D)).to(dtype)
    centre = Centre.of(k[:, :256])
    words, size = encode(k, centre)
    for by in (encode, coded):
        on_gpu = by(k.cuda(), Centre(*(x.cuda() for x in centre)))
        assert torch.equal(on_gpu[0].cpu(), words)
        assert torch.equal(on_gpu[1].cpu(), size)


@pytest.mark.parametrize("D", [64, 96, 128, 256])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_kernels_of_pages_and_codes_pass_their_own_checks(D: int, dtype: torch.dtype) -> None:
    device = torch.device("cuda", torch.cuda.current_device())
    assert pages._check(device, dtype, D, D) is None
    reason = "96 channels are no power of two" if D == 96 else None
    assert coding._check(device, dtype, D) == reason
    for kept in (True, False):
        assert coding._check_stored(device, dtype, D, D, True, kept) == reason
    assert coding._check_stored(device, dtype, D, 64, False) is None
    with torch.autocast("cuda", torch.bfloat16):
        assert coding._check_stored(device, dtype, D, D, D != 96) is None


def test_choices_are_those_of_the_cpu() -> None:
    random = torch.Generator().manual_seed(0)
    q, k = torch.randn(2, 9, 40, 64, generator=random), torch.randn(2, 3, 20_000, 64, generator=random)
    pos, q_pos = torch.arange(20_000).expand(2, -1), torch.arange(19_960, 20_000).expand(2, -1)

    def chosen(device: str, by: str) -> Tensor:
        keys = KeyValues(k.to(device), k.to(device), pos.to(device))
        store = Store.of(keys, 256 if by == "signs" else 0)
        given = q.to(device), q_pos.to(device), store
        after = keys.first(16, False).latest()
        return choose(*given, k=8, near=1000, after_B=after, by=by, per="group", shortlist=64).cpu().sort(-1).values

    for by in ("keys", "signs"):
        same = (chosen("cuda", by) == chosen("cpu", by)).all(-1).float().mean()
        assert same > 0.98  # two keys may score alike, to the rounding of a matrix product


@pytest.mark.parametrize("per", ["group", "head"])
@pytest.mark.parametrize("by", ["keys", "signs"])
@pytest.mark.parametrize("L", [16, 17, 40, 300])
def test_kernels_choose_for_many_queries_as_torch_does(
    L: int, by: str, per: str, monkeypatch: pytest.MonkeyPatch
) -> None:  # fmt: skip
    """Of rows of different lengths in pages; the same by torch of what lies anywhere."""
    random, S = torch.Generator().manual_seed(L), 40_000
    q, (k, v) = torch.randn(2, 9, L, 64, generator=random), torch.randn(2, 2, 3, S, 64, generator=random)
    pos, column = torch.arange(S).repeat(2, 1), torch.arange(S).expand(2, -1)
    pos[1, 5000:9000] = -1
    pos[1, 9000:] -= 4000
    q_pos = pos[:, -L:].clone()
    q_pos[1, :3] = -1
    k, v, q, pos, column, q_pos = (x.cuda() for x in (k, v, q, pos, column, q_pos))
    after, asked = KeyValues(k, v, pos).first(16, False).latest(), []
    settings: dict[str, Any] = {"k": 8, "near": 1000, "after_B": after, "by": by, "per": per, "shortlist": 512}

    def asked_of(*given: Any) -> str | None:
        asked.append(given)
        return unsupported_reason(*given)

    monkeypatch.setattr(lookup_of, "unsupported_reason", asked_of)
    tables = []
    for paged_too in (True, False):
        store = Store([StoreRow(256 if by == "signs" else 0, paged=paged_too) for _ in range(2)])
        for start in range(0, S, 15_000):
            at = slice(start, start + 15_000)
            store.reserve(15_000)
            store.append(KeyValues(k[:, :, at], v[:, :, at], pos[:, at], column[:, at]), True)
        tables.append(choose(q, q_pos, store, **settings))
    assert len(asked) == 1, "kernels were asked for those in pages, and torch does the others"
    assert unsupported_reason(*asked[0]) is None
    same = (tables[0].sort(-1).values == tables[1].sort(-1).values).all(-1).float().mean()
    assert same > 0.95  # two keys may score alike, to the rounding of a matrix product and of a query's steps


@pytest.mark.parametrize("settings", SETTINGS.values(), ids=SETTINGS)
def test_logits_cached_and_padded_are_those_of_the_cpu(settings: dict[str, Any]) -> None:
    ids, mask = left_padded([text(1, n, seed=n)[0] for n in (400, 180)])
    model = tiny()
    CodeLookup(n_global=2, n_local=32, **{"top_k": 4, "shortlist": 64, **settings}).apply(model)

    def read(device: str) -> Tensor:
        model.to(device)
        cache, steps = DynamicCache(), []
        for start, stop in ((0, 380), (380, 381), (381, 382), (382, 400)):
            seen = mask[:, :stop].to(device)
            steps.append(logits_of(model, ids[:, start:stop].to(device), attention_mask=seen, past_key_values=cache))
        return torch.cat(steps, 1).cpu().masked_fill(~mask[..., None].bool(), 0)

    whole = logits_of(model, ids, attention_mask=mask, use_cache=False).masked_fill(~mask[..., None].bool(), 0)
    for device in ("cuda", "cpu"):
        torch.testing.assert_close(read(device), whole, rtol=1e-3, atol=1e-3, msg=lambda m, of=device: f"{of}: {m}")


@pytest.mark.parametrize(("H", "G", "D"), [(32, 8, 128), (9, 3, 64), (6, 6, 96), (8, 1, 256), (4, 2, 80)])
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float32])
def test_kernels_pass_their_own_check(H: int, G: int, D: int, dtype: torch.dtype) -> None:
    for L in (1, 5):
        lookup = Lookup.of(H, G, D, 200, L, dtype=dtype, device="cuda")
        for per in ("group", "head"):
            for by in ("signs", "keys"):
                assert unsupported_reason(lookup.q, lookup.pages, per, by) is None


@pytest.mark.parametrize("per", ["group", "head"])
@pytest.mark.parametrize("by_bits", [False, pytest.param(True, marks=bits_are_multiplied)])
def test_tables_that_nobody_asks_are_empty(by_bits: bool, per: str) -> None:
    from hf_longctx.ops.kernels.triton_lookup import choose as by_kernels

    lookup = Lookup.of(8, 4, 64, 20_000, dtype=torch.bfloat16, device="cuda")
    given = {"k": 8, "per": per, "shortlist": 256, **lookup.settings}
    whole = by_kernels(lookup.q, lookup.q_pos, lookup.pages, **given, by_bits=by_bits)
    asked_T = (torch.arange(whole.shape[1], device="cuda") % 3 == 1).int()
    some = by_kernels(lookup.q, lookup.q_pos, lookup.pages, **given, by_bits=by_bits, asked_T=asked_T)
    assert torch.equal(some, whole.masked_fill(asked_T[:, None, None] == 0, -1))


@pytest.mark.parametrize(("group", "dim"), [(4, 128), (3, 64), (1, 96), (8, 256)])
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float32])
@pytest.mark.parametrize("capped", [False, True])
@pytest.mark.parametrize("lowered", [False, True])
def test_found_tokens_are_attended_to_as_torch_does(
    group: int, dim: int, dtype: torch.dtype, capped: bool, lowered: bool
) -> None:  # fmt: skip
    assert found._check(torch.device("cuda"), dtype, (dim, dim), group, capped, lowered) is None


@pytest.mark.parametrize("S", [500, 8191, 8193, 40_000])
@pytest.mark.parametrize(("H", "G", "D", "L", "per"), [
    (32, 8, 128, 1, "group"), (9, 3, 64, 16, "group"), (6, 6, 96, 3, "head"), (8, 1, 256, 5, "group"),
    (4, 2, 80, 2, "head"),
])  # fmt: skip
def test_kernels_choose_as_torch_does(S: int, H: int, G: int, D: int, L: int, per: str) -> None:
    from hf_longctx.ops.kernels.triton_lookup import choose as by_kernels

    for dtype, shortlist in ((torch.bfloat16, 64), (torch.float32, 300)):
        lookup = Lookup.of(H, G, D, S, L, near=100, dtype=dtype, device="cuda", seed=S + D, more=1)
        table = by_kernels(
            lookup.q, lookup.q_pos, lookup.pages, k=8, per=per, shortlist=shortlist, **lookup.settings
        )  # fmt: skip
        agree(lookup, table, 8, per, shortlist)


@bits_are_multiplied
@pytest.mark.parametrize("S", [500, 8193, 70_000])  # the last is counted by two programs
@pytest.mark.parametrize("per", ["group", "head"])
@pytest.mark.parametrize(("group", "D"), [(4, 128), (3, 64), (1, 96), (8, 256), (2, 80), (12, 160), (32, 64)])
@pytest.mark.parametrize("L", [1, 19])
def test_products_of_bits_choose_what_unpacked_codes_do(L: int, group: int, D: int, per: str, S: int) -> None:
    from hf_longctx.ops.kernels.triton_lookup import choose as by_kernels
    from hf_longctx.ops.kernels.triton_lookup import shortlisted

    lookup = Lookup.of(2 * group, 2, D, S, L, near=100, dtype=torch.bfloat16, device="cuda", more=1)
    assert bits._check(lookup.q.device, D, group, per, L == 1) is None
    both, best = [], []
    for by_bits in (False, True):
        given: dict[str, Any] = {"k": 8, "per": per, "shortlist": 300, "by_bits": by_bits, **lookup.settings}
        both.append(by_kernels(lookup.q, lookup.q_pos, lookup.pages, **given).sort(-1).values)
        del given["k"]
        scores = shortlisted(lookup.q, lookup.q_pos, lookup.pages, **given)[0]
        best.append(scores[0, ..., : -(-S // 64)])  # the row that is filled to its end
    assert torch.equal(best[0], best[1]), "scores are equal to the bit"
    assert torch.equal(both[0], both[1])
    agree(lookup, both[1], 8, per, 300)


@pytest.mark.parametrize("by_bits", [False, pytest.param(True, marks=bits_are_multiplied)])
def test_of_very_many_equal_keys_the_first_are_chosen(by_bits: bool) -> None:
    """As in a first layer, whose keys depend on nothing but the word."""
    from hf_longctx.ops.kernels.triton_lookup import choose as by_kernels

    S, G, D, random = 50_000, 2, 64, torch.Generator().manual_seed(0)
    words = torch.randn(G, 9, D, generator=random)
    said = torch.randint(9, (S,), generator=random)
    k, q = words[:, said][None].cuda(), torch.randn(1, 4, 1, D, generator=random).cuda()
    pages, held = paged(k, k, torch.arange(S, device="cuda")[None], 64)
    centre = Centre.of(k[0, :, :64].cpu())
    scores = score(q[0].unflatten(0, (G, 2)).cpu(), *encode(words, centre), centre).amax(1)[:, 0]
    here, after = torch.full((1, 1), S - 1, device="cuda"), torch.full((1,), 3, device="cuda")
    table = by_kernels(q, here, pages, k=8, near=100, after_B=after, per="group", shortlist=256, by_bits=by_bits)
    for g in range(G):
        first = [s for s in range(4, S) if said[s] == scores[g].argmax()][:8]  # the shortlist has no other word
        assert table[0, g, 0].sort().values.tolist() == first
    del held  # what the addresses are of was needed until here


def test_kernels_find_the_best_keys_as_often_as_exact_scores_of_codes() -> None:
    from hf_longctx.ops.kernels.triton_lookup import choose as by_kernels

    hits = {"kernels": 0.0, "torch": 0.0}
    for seed in range(4):
        lookup = Lookup.of(32, 8, 128, 100_000, 16, near=100, dtype=torch.bfloat16, device="cuda", seed=seed)
        keys = lookup.key_scores("group").masked_fill(lookup.code_scores("group").isinf(), float("-inf"))
        best = keys.topk(8).indices
        tables = {
            "kernels": by_kernels(
                lookup.q, lookup.q_pos, lookup.pages, k=8, per="group", shortlist=256, **lookup.settings
            ),
            "torch": lookup.chosen(8, "group", 256),
        }
        for name, table in tables.items():
            hits[name] += float((best[..., None] == table[..., None, :]).any(-1).float().mean()) / 4
    assert hits["torch"] > 0.2, hits  # random keys are the hardest, and some are found all the same
    assert abs(hits["kernels"] - hits["torch"]) < 0.01, hits


def test_kernels_serve_a_growing_text_from_one_graph() -> None:
    from hf_longctx.ops.kernels.triton_lookup import choose as by_kernels

    lookup = Lookup.of(32, 8, 128, 20_000, 1, near=100, dtype=torch.bfloat16, device="cuda", more=2)
    by_bits = bits.unsupported_reason(lookup.q, lookup.pages, "group") is None
    settings = {"k": 8, "per": "group", "shortlist": 64, "by_bits": by_bits, **lookup.settings}
    filled = lookup.pages.filled_B.clone()
    by_kernels(lookup.q, lookup.q_pos, lookup.pages, **settings)  # compiled
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        table = by_kernels(lookup.q, lookup.q_pos, lookup.pages, **settings)
    for less in (0, 1, 4000, 12_000):
        lookup.pages.filled_B.copy_(filled - less)
        lookup.q_pos.copy_(lookup.pages.filled_B[:, None] - 1)
        lookup.q.copy_(torch.randn(lookup.q.shape, device="cuda"))
        graph.replay()
        eager = by_kernels(lookup.q, lookup.q_pos, lookup.pages, **settings)
        assert torch.equal(table.sort(-1).values, eager.sort(-1).values), f"{less} less: {table} for {eager}"
        agree(lookup, table, 8, "group", 64)


def test_a_store_with_pages_is_searched_by_the_kernels(monkeypatch: pytest.MonkeyPatch) -> None:
    lookup = Lookup.of(8, 2, 64, 9000, 2, near=100, device="cuda")
    truth = lookup.chosen(8, "group", 64)
    asked = []

    def given(store: Store) -> Any:
        asked.append(store)
        return lookup.pages

    monkeypatch.setattr(Store, "pages", given)
    table = lookup.chosen(8, "group", 64)
    assert asked
    same = (table.sort(-1).values == truth.sort(-1).values).all(-1).float().mean()
    assert same >= 0.9, f"{table} for {truth}"
