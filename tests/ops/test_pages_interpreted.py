"""The kernels of a store's pages without a GPU: run by Triton's interpreter, compiled for an H100. Needs triton."""

from __future__ import annotations

from tests.ops.interpreted import needs_triton, run

pytestmark = needs_triton

STORES = """
import torch
from hf_longctx.cache import KeyValues, Store, growing
from hf_longctx.cache.store_row import StoreRow
from hf_longctx.ops import pages
from hf_longctx.ops.kernels.triton_pages import gather
growing.PIECE = pages.PAGE = 8

def stores(B, first=6):
    return [Store([StoreRow(first, paged=True) for _ in range(B)]) for _ in range(2)]

def text(B, G, S, D, V, pos):
    column = torch.arange(S).expand(B, -1)
    return KeyValues(torch.randn(B, G, S, D), torch.randn(B, G, S, V), pos, column)

def part(x, at):
    return KeyValues(x.k[:, :, at], x.v[:, :, at], x.pos[:, at], x.column[:, at])

def held(row):
    names = ("k", "v", "pos", "column", "words", "size")[: 6 if row.centred_by else 4]
    found = {name: getattr(row, name).cut(0, row.filled) for name in names}
    return found if row.centre is None else found | row.centre._asdict()

def equal(one, other):
    for a, b in zip(one.rows, other.rows, strict=True):
        assert (a.filled, a.coded) == (b.filled, b.coded)
        mine, its = held(a), held(b)
        assert {name for name in mine if not torch.equal(mine[name], its[name])} == set()
"""
STEPS = """
torch.manual_seed(0)
for B, G, D, V, waits, first in ((1, 2, 64, 64, False, 6), (2, 1, 128, 64, True, 6), (3, 2, 20, 12, True, 6),
                                 (1, 1, 80, 80, False, 6), (2, 2, 48, 32, True, 0)):
    S = 37
    pos = torch.arange(S).expand(B, -1).clone()
    if waits:
        pos = torch.where(torch.rand(B, S) < 0.6, pos, -1)
        pos[:, :10] = torch.arange(10)
    x = text(B, G, S, D, V, pos)
    ours, plain = stores(B, first)
    for store in (ours, plain):
        store.append(part(x, slice(0, 13)), True)
    for t in range(13, S):
        ours.reserve(1)
        assert ours.pages() is not None
        new = part(x, slice(t, t + 1))
        ours.addresses.step(new.k, new.v, new.pos, new.column[:1], (new.pos >= 0).long())
        if t % 5 == 0:  # a step that is done again
            ours.addresses.take_back()
            ours.addresses.counted -= 1
            ours.addresses.step(new.k, new.v, new.pos, new.column[:1], (new.pos >= 0).long())
        plain.append(new, True)
        if t == 20:
            for store in (ours, plain):
                store.select(list(range(B))[::-1])
            x = KeyValues(x.k.flip(0), x.v.flip(0), x.pos.flip(0), x.column)
        if t == 30:
            equal(ours, plain)
    equal(ours, plain)
    most = min(row.filled for row in plain.rows)
    table = torch.randint(-1, most, (B, 2 * G, 3, 5))
    live = (table >= 0)[..., None]
    for which, dim in (("k", D), ("v", V)):
        got = gather(getattr(ours.pages(), which), table, G, dim, torch.float32)
        wanted = torch.stack([getattr(row, which).take(table[b].clamp(min=0)) for b, row in enumerate(plain.rows)])
        assert torch.equal(got, torch.where(live, wanted, 0.0))
"""
COMPILED = """
import triton
from tests.ops.interpreted import compile_for_h100
from hf_longctx.ops.kernels import triton_pages as P

up = triton.next_power_of_2
table = ("k_at", "v_at", "words_at", "size_at", "pos_at", "column_at")
longs = {name: "*i64" for name in (*table, "pos", "column", "filled", "order", "ring_at")} | {"arrived": "*i32"}
floats = {name: "*fp32" for name in ("mean", "width", "first", "second")} | {"factor": "fp32"}
for D, T, C, kinds in ((64, 64, 128, ("*bf16",)), (96, 96, 96, ("*fp16",)), (128, 128, 128, ("*bf16", "*fp32")),
                       (256, 256, 256, ("*fp32",)), (64, 0, 0, ("*bf16",))):
    for kind in kinds:
        codes = ("given" if T & (T - 1) else "made") if C else "none"
        new = {"words_new": "*i32", "size_new": "*fp16"} if codes == "given" else {"words_new": kind, "size_new": kind}
        sizes = {"D": D, "DP": up(D), "V": D, "VP": up(D), "C": C, "T": T, "STEPS": max(T.bit_length() - 1, 0)}
        sizes |= {"WP": up(max(C // 32, 1)), "PAGE": 8192, "CODES": codes}
        held = {name: kind for name in ("k", "v", "ring_k", "ring_v")} | new
        for ring in (False, True):
            compile_for_h100(P._keep, sizes | {"RING": ring}, {**held, **longs, **floats}, num_warps=1)
        sizes = {"D": D, "DP": up(D), "ROWS": P.ROWS, "PAGE": 8192}
        compile_for_h100(P._gather, sizes, {"table": "*i64", "at": "*i64", "out": kind})
"""


CODES = """
import torch
from hf_longctx.ops.codes import Centre, encode
from hf_longctx.ops.kernels import coding, triton_coding
torch.manual_seed(0)
triton_coding.ELEMENTS = 512
bf16, fp16, fp32 = torch.bfloat16, torch.float16, torch.float32
for D, S, dtype in ((64, 70, fp32), (128, 33, bf16), (20, 100, fp16), (256, 9, bf16)):
    k = (3 * torch.randn(2, S + 5, D) + 1).to(dtype)[:, 2:-3]
    centre = Centre.of(k[:, :8])
    for got, wanted in zip(triton_coding.encode(k, centre), encode(k, centre), strict=True):
        assert got.dtype == wanted.dtype and torch.equal(got, wanted), (D, dtype)
    pages = [torch.full((2, S + 9, *x.shape[2:]), 7, dtype=x.dtype) for x in encode(k, centre)]
    triton_coding.encode(k, centre, tuple(page[:, 4 : S + 4] for page in pages))  # where they are to lie
    for page, wanted in zip(pages, encode(k, centre), strict=True):
        assert torch.equal(page[:, 4 : S + 4], wanted) and (page[:, :4] == 7).all() and (page[:, S + 4 :] == 7).all()

def kernel(k, *given):
    calls.append(k)
    return own(k, *given)

own, triton_coding.encode, coding.DEVICES, calls = triton_coding.encode, kernel, ("cpu",), []
for D, count in ((64, 2), (96, 2), (64, 3)):  # a check and what is asked for; 96 is no power of two; no check again
    k = torch.randn(1, 9, D)
    assert torch.equal(coding.coded(k, Centre.of(k))[0], encode(k, Centre.of(k))[0])
    assert len(calls) == count, (D, len(calls))
triton_coding.encode = lambda k, centre, into=None: (encode(k, centre)[0] ^ 1, encode(k, centre)[1])
k = torch.randn(1, 9, 64).half()
assert torch.equal(coding.coded(k, Centre.of(k))[0], encode(k, Centre.of(k))[0]), "wrong codes are seen"
"""


LAUNCHES = (
    STORES
    + """
from hf_longctx.cache import store_row
from hf_longctx.ops.kernels import coding, triton_coding
torch.manual_seed(0)
triton_coding.ELEMENTS, coding.DEVICES, launches, own = 512, ("cpu",), [], triton_coding.store
coding.coded.__globals__["checked_once"] = lambda owner, key, check: None if owner is coding.stored else "not here"
def counted(k, *given):
    launches.append((k.shape[1], given[-1]))
    return own(k, *given)
triton_coding.store = counted
"""
)
CHUNKS = (
    LAUNCHES
    + """
bf16, fp16, fp32 = torch.bfloat16, torch.float16, torch.float32
for B, G, D, V, waits, first, dtype in ((1, 2, 64, 64, False, 6, fp32), (2, 1, 128, 64, True, 6, fp32),
                                        (2, 3, 20, 12, True, 6, bf16), (2, 2, 48, 32, True, 0, fp16)):
    S = 61
    pos = torch.arange(S).expand(B, -1).clone()
    if waits:
        pos[:, 10:] = torch.where(torch.rand(B, S - 10) < 0.7, pos[:, 10:], -1)
    x = text(B, G, S, D, V, pos)
    x = KeyValues(x.k.to(dtype), x.v.to(dtype), x.pos, x.column)
    (ours, plain), start = stores(B, first), 0
    for count in (13, 20, 1, 2, 8, 17):  # some end inside a page, some fill one, one spans three
        launches.clear()
        store_row.stored = coding.stored
        ours.append(part(x, slice(start, start + count)), True)
        rows = [int((x.pos[b, start : start + count] >= 0).sum()) for b in range(B)]  # padding is not kept
        assert launches == ([] if start == 0 else [(n, True) for n in rows if n]), (launches, start)
        store_row.stored = lambda *given: False
        plain.append(part(x, slice(start, start + count)), True)
        start += count
    equal(ours, plain)
    twins, (row, other) = [], (ours.rows[0].twin(), plain.rows[0].twin())
    more = part(text(1, G, 9, D, V, torch.arange(9)[None] + S), slice(0, 9))
    more = KeyValues(more.k.to(dtype), more.v.to(dtype), more.pos, more.column)
    for one, by in ((row, coding.stored), (other, lambda *given: False)):
        store_row.stored = by
        twins.append(Store([one]))
        twins[-1].append(more, False)
    equal(*twins)
    equal(ours, plain)  # which the twins' pages are not
store_row.stored = coding.stored
(ours, _), x = stores(1), text(1, 1, 40, 64, 64, torch.arange(40)[None])
ours.append(part(x, slice(0, 10)), False)
launches.clear()
grown = KeyValues(x.k[:, :, 10:20].clone().requires_grad_(), x.v[:, :, 10:20], x.pos[:, 10:20], x.column[:, 10:20])
ours.append(grown, False)  # a graph needs them as they are
other = part(x, slice(20, 30))
ours.append(KeyValues(other.k.half(), other.v.half(), other.pos, other.column), False)  # another dtype than its pages
assert not launches and ours.rows[0].filled == 30
"""
)


def test_a_chunk_is_kept_in_one_launch_as_torch_keeps_it() -> None:
    run(CHUNKS, "1")


STORED = """
import torch
from hf_longctx.ops.kernels import coding, triton_coding
bf16, fp16, fp32 = torch.bfloat16, torch.float16, torch.float32
for D, V, dtype, coded in ((64, 64, bf16, True), (128, 128, fp16, True), (20, 12, fp32, True), (96, 64, fp32, False)):
    assert coding._check_stored(torch.device("cpu"), dtype, D, V, coded) is None
assert "no power of two" in coding._check_stored(torch.device("cpu"), torch.float32, 96, 96, True)
own = triton_coding.store
def off_by_one(k, v, at, start, *rest):
    own(k, v, at, start + 1, *rest)
def first_head(k, v, *rest):
    own(k[:1].expand_as(k), v, *rest)
def no_codes(k, v, at, start, page, centre, *rest):
    own(k, v, at, start, page, None, *rest)
for wrong in (off_by_one, first_head, no_codes, lambda *given: None):
    triton_coding.store = wrong
    assert "do not hold" in coding._check_stored(torch.device("cpu"), torch.float32, 64, 64, True)
triton_coding.store = None
assert "TypeError" in coding._check_stored(torch.device("cpu"), torch.float32, 64, 64, True)
"""


def test_the_kernel_that_keeps_chunks_is_checked_on_its_first_use() -> None:
    run(STORED, "1")


CHECKS = """
import torch
from hf_longctx.ops import pages as sizes
from hf_longctx.ops.kernels import pages, triton_pages
sizes.PAGE = 8
for D, V, dtype in ((64, 64, torch.bfloat16), (96, 64, torch.float16), (20, 12, torch.float32)):
    assert pages._check(torch.device("cpu"), dtype, D, V) is None
wrong, right = (lambda *given: triton_gather(*given) + 1), triton_pages.keep
triton_gather, triton_pages.gather = triton_pages.gather, wrong
assert "found again" in pages._check(torch.device("cpu"), torch.float32, 32, 32)
triton_pages.gather, triton_pages.keep = triton_gather, lambda *given: None
assert "found again" in pages._check(torch.device("cpu"), torch.float32, 32, 32)
def first_row_alone(pages, *given):
    second = pages.filled_B.tolist()[1]
    right(pages, *given)
    pages.filled_B[1] = second
triton_pages.keep = first_row_alone
assert "found again" in pages._check(torch.device("cpu"), torch.float32, 32, 32)
triton_pages.keep = None
assert "TypeError" in pages._check(torch.device("cpu"), torch.float32, 32, 32)
"""


def test_kernels_of_pages_are_checked_on_their_first_use() -> None:
    run(CHECKS, "1")


def test_tokens_kept_one_by_one_by_counters_are_those_kept_by_torch_and_are_gathered_again() -> None:
    run(STORES + STEPS, "1")


def test_many_keys_coded_in_one_launch_have_the_codes_of_torch() -> None:
    run(CODES, "1")


def test_they_compile_for_an_h100() -> None:
    run(COMPILED, "0")
