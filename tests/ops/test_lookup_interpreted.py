"""The kernels that look tokens up, without a GPU: run by Triton's interpreter, compiled for an H100. Needs triton."""

from __future__ import annotations

import pytest

from tests.ops.interpreted import needs_triton, run

pytestmark = needs_triton

MAXIMA = """
import torch
from hf_longctx.ops.kernels import triton_lookup as T
from tests.ops.lookups import AFTER, Lookup

for H, G, D, L, per in ((3, 3, 64, 1, "group"), (3, 1, 96, 2, "head"), (8, 2, 128, 3, "group"), (8, 1, 256, 1, "group"),
                        (8, 1, 80, 3, "head"), (2, 1, 32, 16, "group")):
    lookup = Lookup.of(H, G, D, 200, L, more=1)
    shapes = T.Shapes(lookup.q, lookup.pages, per)
    ready = T.prepared(lookup.q, lookup.pages, shapes)
    best = T.maxima(ready, lookup.q_pos, lookup.pages, shapes, **lookup.settings)
    true = torch.nn.functional.pad(lookup.code_scores(per), (0, 56), value=float("-inf")).unflatten(-1, (4, 64)).amax(-1)
    best[1, ..., 3] = float("-inf")  # behind the row's end
    torch.testing.assert_close(best[..., :4], true, rtol=1e-3, atol=1e-3 * float(true[true.isfinite()].abs().max()))
"""

SELECTING = """
import torch
from hf_longctx.ops.kernels.triton_best import _select
none = float("-inf")
torch.manual_seed(0)
ties = torch.randint(0, 3, (5, 300)).float()
few = torch.full((5, 300), none).index_fill(1, torch.tensor([7, 250]), 1.5)
for scores, what in ((torch.randn(5, 300), "random"), (torch.randn(5, 300) * 1e-30 - 1.0, "close"), (ties, "ties"),
                     (torch.zeros(5, 300), "all equal"), (torch.full((5, 300), none), "none"), (few, "few"),
                     (torch.randn(5, 300).masked_fill(torch.rand(5, 300) < 0.5, none), "half"), (ties - 1e30, "far"),
                     (torch.randn(5, 300).double().exp().pow(9).float() * torch.tensor([1.0, -1]).repeat(150), "wide")):
    for names in (None, torch.stack([torch.randperm(300) for _ in range(5)]).int()):
        for k, most, number in ((40, 45, 300), (40, 40, 299), (1, 1, 300), (300, 310, 300), (40, 45, 12)):
            kept, kept_score = torch.full((5, most), -1).int(), torch.zeros(5, most)
            count, found, floor = torch.zeros(5).int(), torch.ones(5).int(), torch.zeros(5)
            numbers = torch.full((5,), number).int() if names is not None else torch.full((5,), 64 * number - 1)
            _select[(5,)](scores, kept if names is None else names, numbers, kept, kept_score, count, floor, found, 1,
                          300, most, KEPT=k, CHUNK=64, NAMED=names is not None)
            there = scores[:, :number]
            name = names[:, :number] if names is not None else torch.arange(number).expand(5, -1)
            for row in range(5):
                order = sorted((-float(s), int(n)) for s, n in zip(there[row], name[row]) if s > none)
                got = kept[row, : count[row]].tolist()
                assert len(set(got)) == len(got) == min(len(order), max(len(got), k)) <= most, (what, k, len(got))
                assert set(got) >= {n for _, n in order[:k]}, (what, k, number)
                assert set(got) == {n for _, n in order[: len(got)]}, "the best ones, of equal ones the lower name"
                if names is None:
                    assert (floor[row] == none) == (len(got) < k) and all(-s >= floor[row] for s, _ in order[: len(got)])
                    assert found[row] == 0
"""

CHOOSING = """
import torch
from hf_longctx.ops.kernels import triton_lookup as T
from hf_longctx.ops.paged import paged
from tests.ops.lookups import Lookup, agree

for H, G, D, S, L, per, k, shortlist, near in (
    (4, 2, 64, 63, 1, "group", 4, 16, 20), (4, 1, 64, 64, 1, "head", 4, 16, 20), (3, 1, 96, 65, 2, "group", 4, 16, 20),
    (4, 4, 80, 300, 3, "group", 8, 40, 20), (2, 1, 64, 300, 1, "group", 8, 400, 20),  # more than there are
    (2, 1, 64, 90, 1, "group", 40, 40, 50), (2, 2, 64, 60, 1, "head", 4, 8, 99),  # few, and no candidates
    (8, 1, 128, 700, 1, "group", 8, 8, 20), (8, 1, 128, 500, 4, "head", 3, 64, 20),
):
    lookup = Lookup.of(H, G, D, S, L, near, more=1)
    table = T.choose(lookup.q, lookup.q_pos, lookup.pages, k=k, per=per, shortlist=shortlist, **lookup.settings)
    agree(lookup, table, k, per, shortlist)
T.AT_ONCE = 1  # queries one by one
assert torch.equal(T.choose(lookup.q, lookup.q_pos, lookup.pages, k=k, per=per, shortlist=64, **lookup.settings), table)

# equal keys: the lower slots
k = torch.ones(1, 1, 400, 64)
pages, held = paged(k, k, torch.arange(400)[None], 32)
given = torch.ones(1, 1, 1, 64), torch.tensor([[399]]), pages
table = T.choose(*given, k=5, near=9, after_B=torch.tensor([99]), per="group", shortlist=16)
assert table.flatten().tolist() == [100, 101, 102, 103, 104]
never = pages._replace(ready_B=torch.full((1,), torch.iinfo(torch.long).max))  # no codes yet
assert (T.choose(*given[:2], never, k=5, near=9, after_B=torch.tensor([99]), per="group", shortlist=16) == -1).all()
"""

PAGE = """
import torch
from hf_longctx.ops.kernels import triton_lookup as T
from tests.ops.lookups import Lookup, agree

for S in (8191, 8192, 8193):  # around the border of a page
    lookup = Lookup.of(1, 1, 32, S, 1, near=1)
    lookup.k[0, :, -1] = 9 * lookup.q[0, :, 0]  # the best one is the last, and is coded as such
    from hf_longctx.ops.paged import paged
    pages, held = paged(lookup.k, lookup.v, lookup.pos, 32)
    pages.filled_B[1] -= S // 3
    lookup = lookup._replace(pages=pages, held=held, q_pos=lookup.q_pos + 1)
    table = T.choose(lookup.q, lookup.q_pos, lookup.pages, k=4, per="group", shortlist=16, **lookup.settings)
    assert S - 1 in table[0], table
    agree(lookup, table, 4, "group", 16)
"""

COMPILED = """
import torch
import triton
from tests.ops.interpreted import compile_for_h100
from hf_longctx.ops.kernels import triton_best as B, triton_codes as C, triton_lookup as T, triton_shortlist as S
from hf_longctx.ops.pages import PAGE, Pages

names = ("q_pos", "words", "size", "pos", "filled", "ready", "after", "k", "numbers")
kinds = dict.fromkeys(names, "*i64")
names = ("half", "base", "factor", "best", "floor", "score", "real", "scores", "kept_score", "turn", "mean", "width")
kinds |= dict.fromkeys(names, "*fp32") | {"operand": "*fp16", "near": "i64"}
kinds |= dict.fromkeys(("block", "count", "found", "slot", "real_slot", "names", "kept"), "*i32")

def compile(function, sizes, more={}, **options):
    kernel = compile_for_h100(function, sizes, kinds | more, **options)
    assert kernel.metadata.shared < 227 * 1024, (function, sizes, kernel.metadata.shared)

for D, group, L, per, dtype in ((64, 3, 1, "group", "*bf16"), (96, 1, 2, "group", "*fp16"), (128, 4, 1, "group", "*bf16"),
                                (256, 8, 16, "head", "*fp16"), (128, 4, 1, "head", "*fp32")):
    q, table = torch.empty(1, group, L, D, device="meta"), torch.empty(1, 1, device="meta")
    pages = Pages(*[table] * 5, table, table, torch.empty(1, 1, -(-D // 32) * 32, device="meta"), table, q.dtype)
    shapes = T.Shapes(q, pages, per)
    codes, wide = shapes.codes, triton.next_power_of_2(D)
    sizes = {name: codes[name] for name in ("WP", "R", "RP", "NQ", "K")}
    compile(C._prepare, dict(D=D, DP=wide, C=shapes.C, **sizes), {"q": dtype})
    compile(C._maxima, dict(PAGE=PAGE, **codes, HEADS=shapes.heads, ONE=L == 1), num_warps=1, num_stages=2)
    columns = 8 if shapes.heads else max(8, codes["RP"])
    compile(B._survivors, dict(PAGE=PAGE, **codes, NC=columns, HEADS=shapes.heads), num_warps=1)
    sizes = dict(PAGE=PAGE, D=D, DP=wide, R=group, NC=columns, HEADS=shapes.heads)
    compile(S._shortlist, sizes, {"q": dtype, "like": dtype})
for named in (False, True):
    more = {"numbers": "*i32" if named else "*i64"}
    compile(B._select, dict(KEPT=1024, CHUNK=4096, NAMED=named), more, num_warps=8)
compile(S._last, dict(LEFT=8), {"table": "*i64", "k": "i32"})
"""


@pytest.mark.parametrize(
    ("code", "interpret"),
    [(MAXIMA, "1"), (SELECTING, "1"), (CHOOSING, "1"), (PAGE, "1"), (COMPILED, "0")],
    ids=["maxima", "selecting", "choosing", "page", "compiled"],
)
def test_kernels(code: str, interpret: str) -> None:
    run(code, interpret)
