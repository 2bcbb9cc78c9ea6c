"""The kernels that look tokens up, without a GPU: run by Triton's interpreter, compiled for an H100. Needs triton."""

from __future__ import annotations

import pytest

from tests.ops.interpreted import needs_triton, run

pytestmark = needs_triton

SMALL = """
import torch
from hf_longctx.ops import paged as pages_of
from hf_longctx.ops.kernels import triton_lookup as T
from tests.ops.lookups import Lookup, agree
pages_of.PAGE = T.PAGE = 1024  # small pages: the interpreter takes its time for every program
"""

MAXIMA = (
    SMALL
    + """
for H, G, D, L, per in ((3, 3, 64, 1, "group"), (3, 1, 96, 2, "head"), (8, 1, 128, 3, "group"), (8, 1, 256, 1, "group"),
                        (2, 1, 32, 16, "group")):
    lookup = Lookup.of(H, G, D, 200, L, more=1)
    shapes = T.Shapes(lookup.q, lookup.pages, per)
    ready = T.prepared(lookup.q, lookup.pages, shapes)
    best = T.maxima(ready, lookup.q_pos, lookup.pages, shapes, **lookup.settings)
    scores = torch.nn.functional.pad(lookup.code_scores(per), (0, 56), value=float("-inf"))
    best[1, ..., 3] = float("-inf")  # behind the row's end
    size = float(scores[scores.isfinite()].abs().max())
    torch.testing.assert_close(best[..., :4], scores.unflatten(-1, (4, 64)).amax(-1), rtol=1e-3, atol=1e-3 * size)
"""
)

SELECTING = """
import torch
from hf_longctx.ops.kernels.triton_best import _select
none, n = float("-inf"), 100
torch.manual_seed(0)
random, ties, few = torch.randn(2, n), torch.randint(0, 3, (2, n)).float(), torch.full((2, n), none)
few[:, [7, 50]] = 1.5
kinds = {"random": random, "close": random * 1e-30 - 1.0, "ties": ties, "equal": torch.zeros(2, n), "few": few,
         "half": random.masked_fill(torch.rand(2, n) < 0.5, none), "wide": random.exp().pow(9) * random.sign()}
for what, scores in kinds.items():
    for named, k, most, number in ((True, 20, 25, n), (False, 20, 20, 99), (False, 1, 1, n), (True, n, 110, n)):
        names = torch.stack([torch.randperm(n) for _ in range(2)]).int() if named else torch.arange(n).expand(2, -1)
        kept, kept_score = torch.full((2, most), -1).int(), torch.zeros(2, most)
        count, found, floor = torch.zeros(2).int(), torch.ones(2).int(), torch.zeros(2)
        numbers = torch.full((2,), number).int() if named else torch.full((2,), 64 * number - 1)
        _select[(2,)](scores, names, numbers, kept, kept_score, count, floor, found, 1, n, most, KEPT=k, CHUNK=64,
                      NAMED=named)
        for row in range(2):
            at = list(zip(scores[row, :number].tolist(), names[row, :number].tolist()))
            order = sorted((-score, name) for score, name in at if score > none)
            got = kept[row, : count[row]].tolist()
            assert len(set(got)) == len(got) == min(len(order), max(len(got), k)) <= most, (what, k, len(got))
            assert set(got) == {name for _, name in order[: len(got)]}, "the best ones, of equal ones the lower name"
            if not named:
                assert (floor[row] == none) == (len(got) < k) and all(-s >= floor[row] for s, _ in order[: len(got)])
                assert found[row] == 0
"""

CHOOSING = (
    SMALL
    + """
for H, G, D, S, L, per, k, shortlist, near in (
    (3, 1, 96, 65, 2, "group", 4, 16, 20), (2, 2, 80, 300, 1, "head", 8, 30, 20),
    (4, 1, 128, 400, 1, "group", 3, 64, 20),
    (2, 1, 64, 90, 1, "group", 40, 40, 50), (1, 1, 64, 63, 1, "head", 4, 8, 99),  # fewer than that, and none
):
    lookup = Lookup.of(H, G, D, S, L, near, more=1)
    table = T.choose(lookup.q, lookup.q_pos, lookup.pages, k=k, per=per, shortlist=shortlist, **lookup.settings)
    agree(lookup, table, k, per, shortlist)
"""
)

EDGES = (
    SMALL
    + """
lookup = Lookup.of(2, 1, 64, 100, 3, more=1)
given = {"k": 4, "per": "head", "shortlist": 8, **lookup.settings}
whole = T.choose(lookup.q, lookup.q_pos, lookup.pages, **given)
T.AT_ONCE = 1  # queries one by one
assert torch.equal(T.choose(lookup.q, lookup.q_pos, lookup.pages, **given), whole)

# equal keys: the lower slots, on both sides of the borders of blocks and pages
given = {"k": 5, "near": 1, "per": "group", "shortlist": 16}
one = torch.ones(1, 1, 1026, 32)
for S, after in ((64, 40), (65, 59), (1024, 1015), (1026, 1020), (1026, 1022)):
    pages, held = pages_of.paged(one[:, :, :S], one[:, :, :S], torch.arange(S)[None], 32)
    last = torch.ones(1, 1, 1, 32), torch.tensor([[S - 1]])
    table = T.choose(*last, pages, after_B=torch.tensor([after]), **given).flatten().tolist()
    right = list(range(after + 1, S - 1))[:5]
    assert table == right + [-1] * (5 - len(right)), (S, table)
never = pages._replace(ready_B=torch.full((1,), torch.iinfo(torch.long).max))  # no codes yet
assert (T.choose(*last, never, after_B=torch.tensor([99]), **given) == -1).all()
"""
)

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

for D, group, L, per, dtype in ((64, 3, 1, "group", "*bf16"), (96, 1, 2, "group", "*fp32"),
                                (128, 4, 1, "group", "*bf16"), (256, 8, 16, "head", "*fp16")):
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
    [(MAXIMA, "1"), (SELECTING, "1"), (CHOOSING, "1"), (EDGES, "1"), (COMPILED, "0")],
    ids=["maxima", "selecting", "choosing", "edges", "compiled"],
)
def test_kernels(code: str, interpret: str) -> None:
    run(code, interpret)
