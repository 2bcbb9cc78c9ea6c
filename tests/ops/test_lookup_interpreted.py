"""The kernels that look tokens up, without a GPU: run by Triton's interpreter. Needs triton."""

from __future__ import annotations

import pytest

from tests.ops.interpreted import needs_triton, run

pytestmark = needs_triton

SMALL = """
import torch
from hf_longctx.ops import pages as sizes
from hf_longctx.ops.paged import paged
from hf_longctx.ops.kernels import triton_lookup as T
from tests.ops.lookups import Lookup, agree
sizes.PAGE = 1024  # small pages: the interpreter takes its time for every program
"""

MAXIMA = (
    SMALL
    + """
for H, G, D, L, per in ((3, 3, 64, 1, "group"), (3, 1, 96, 2, "head"), (8, 1, 128, 3, "group"), (8, 1, 256, 1, "group"),
                        (2, 1, 32, 16, "group")):
    lookup = Lookup.of(H, G, D, 200, L, more=1)
    shapes = T.Shapes(lookup.q, lookup.pages, per)
    ready = T.prepared(lookup.q, lookup.pages, shapes)
    best, state = T.maxima(ready, lookup.q_pos, lookup.pages, shapes, **lookup.settings)
    scores = torch.nn.functional.pad(lookup.code_scores(per), (0, 56), value=float("-inf"))
    best[1, ..., 3] = float("-inf")  # behind the row's end
    size = float(scores[scores.isfinite()].abs().max())
    torch.testing.assert_close(best[..., :4], scores.unflatten(-1, (4, 64)).amax(-1), rtol=1e-3, atol=1e-3 * size)
"""
)

# programs whose slots all queries see compare nothing: those of the second 1,024 slots, in the first row
WHOLE = (
    SMALL
    + """
for H, G, D, L, per in ((3, 1, 64, 3, "group"), (2, 2, 96, 2, "head"), (4, 2, 32, 1, "group")):
    lookup = Lookup.of(H, G, D, 2100, L)
    assert lookup.settings["after_B"][0] < lookup.pos[0, 1024:2048].min()
    assert lookup.pos[0, 1024:2048].max() <= lookup.q_pos[0].min() - lookup.near
    shapes = T.Shapes(lookup.q, lookup.pages, per)
    ready = T.prepared(lookup.q, lookup.pages, shapes)
    best, state = T.maxima(ready, lookup.q_pos, lookup.pages, shapes, **lookup.settings)
    scores = torch.nn.functional.pad(lookup.code_scores(per), (0, 12), value=float("-inf")).unflatten(-1, (33, 64))
    size = float(scores[scores.isfinite()].abs().max())
    for b, n in enumerate((33, 21)):  # behind a row's end they are undefined
        found, right = best[b, ..., :n], scores[b, ..., :n, :].amax(-1)
        torch.testing.assert_close(found, right, rtol=1e-3, atol=1e-3 * size)
"""
)

OPERAND = (
    SMALL
    + """
from hf_longctx.ops.codes import Centre, in_steps, turned
for H, G, D in ((3, 3, 64), (3, 1, 96), (8, 1, 128), (12, 1, 256)):
    lookup = Lookup.of(H, G, D, 60, 1)
    operand, R = T.prepared(lookup.q, lookup.pages, T.Shapes(lookup.q, lookup.pages, "group", True))[0], H // G
    # fours of heads, halves of the channels, pairs of bits, heads, bits of a pair, words
    bits = (operand.view(2, G, -1, max(1, D // 128), 3, 4, 2, 4)[..., None] >> torch.arange(32)) & 1
    numbers = torch.einsum("bgshpntwc,pt->bgsnhwc", bits.double(), torch.tensor([[1, 2], [4, 8], [16, -32.0]]).double())
    numbers = numbers.flatten(4).flatten(2, 3)
    for b in range(2):
        centre = Centre(lookup.pages.mean_BGD[b], lookup.pages.width_BGC[b])
        whole, _ = in_steps(turned(lookup.q[b].unflatten(0, (G, R))[:, :, 0]), centre.width_GC)
        off = (numbers[b, :, :R, : whole.shape[-1]] - whole).abs()
        assert off.max() <= 1 and (off > 0).float().mean() < 0.01, "but for what lies between two numbers"
"""
)

SELECTING = """
import torch
from hf_longctx.ops.kernels.triton_best import _select
from hf_longctx.ops.kernels.triton_bins import _bins, _listed
from hf_longctx.ops.kernels.triton_range import STATE, widen
none, n = float("-inf"), 100
torch.manual_seed(0)
random, ties, few = torch.randn(2, n), torch.randint(0, 3, (2, n)).float(), torch.full((2, n), none)
few[:, [7, 50]] = 1.5
kinds = {"random": random, "close": random * 1e-30 - 1.0, "ties": ties, "equal": torch.zeros(2, n), "few": few,
         "half": random.masked_fill(torch.rand(2, n) < 0.5, none), "wide": random.exp().pow(9) * random.sign()}
for what, scores in kinds.items():
    for named, k, most, number, groups in ((True, 20, 25, n, 0), (False, 20, 20, 99, 32), (True, 17, 17, n, 64),
                                           (False, 1, 1, n, 1), (True, n, 110, n, 0)):
        names = torch.stack([torch.randperm(n) for _ in range(2)]).int() if named else torch.arange(n).expand(2, -1)
        kept, kept_score = torch.full((2, most), -1).int(), torch.zeros(2, most)
        count, found, floor = torch.zeros(2).int(), torch.ones(2).int(), torch.zeros(2)
        numbers = torch.full((2,), number).int() if named else torch.full((2,), 64 * number - 1)
        _select[(2,)](scores, names, numbers, kept, kept_score, count, floor, found, 1, n, most, KEPT=k, CHUNK=64,
                      GROUPS=groups, NAMED=named)
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

BINS = (
    SELECTING
    + """
import triton
import triton.language as tl

@triton.jit
def note(state, scores, room, number, N: tl.constexpr):
    row, at = tl.program_id(0), tl.arange(0, N)
    score = tl.load(scores + row * room + at, at < number, float("-inf"))
    some = score > float("-inf")
    high, low = tl.max(score, 0), tl.min(tl.where(some, score, float("inf")), 0)
    one = tl.zeros((1,), tl.int32)
    widen(state, one + row, one + high, one + low, one == 0)

n = 2500  # three parts
kinds = {"random": torch.randn(2, n), "close": torch.randn(2, n) * 1e-30 - 1.0, "equal": torch.zeros(2, n),
         "ties": torch.randint(0, 3, (2, n)).float(), "far": torch.randn(2, n), "few": torch.full((2, n), none),
         "half": torch.randn(2, n).masked_fill(torch.rand(2, n) < 0.5, none)}
kinds["far"][:, 7], kinds["far"][:, 1500] = 1e9, -1e9
kinds["few"][:, [7, 2050]] = 1.5
for what, scores in kinds.items():
    for k, most, number in ((20, 25, n), (300, 340, 2400), (17, 17, 1000), (1, 65, n), (5, 9, 0)):
        state, floor = torch.zeros(2, STATE.value).int(), torch.zeros(2)
        note[(2,)](state, scores, n, number, N=4096)
        least, block = torch.zeros(2).long(), torch.full((2, most), -1).int()
        count, found = torch.ones(2, 2).int()
        numbers = torch.full((2,), 64 * number - min(number, 1))
        for _ in range(2):  # twice from what has been noted once
            _bins[(3, 2)](scores, numbers, numbers, state, torch.full_like(state, 7), least, floor, count, found, 1, 1,
                          n, most, KEPT=k, CHUNK=64, ASKED=False)
            _listed[(3, 2)](scores, numbers, numbers, state, least, block, count, 1, 1, n, most, ASKED=False)
        assert (found == 0).all()
        for row in range(2):
            order = sorted((-s, at) for at, s in enumerate(scores[row, :number].tolist()) if s > none)
            got = block[row, : count[row]].tolist()
            assert len(set(got)) == len(got) == min(len(order), max(len(got), k)) <= most, (what, k, len(got))
            assert set(got) == {at for _, at in order[: len(got)]}, (what, "the best ones, of equal ones the lower")
            assert floor[row] <= -order[min(k, len(order)) - 1][0] if order else floor[row] == none
            assert floor[row] > none or len(order) <= most or len(order) < k, what
"""
)

CHOOSING = (
    SMALL
    + """
for H, G, D, S, L, per, k, shortlist, near in (
    (3, 1, 96, 65, 2, "group", 4, 16, 20), (2, 2, 80, 300, 1, "head", 8, 30, 20),
    (4, 1, 128, 300, 1, "group", 3, 64, 20),
    (2, 1, 64, 90, 1, "group", 40, 40, 50), (1, 1, 64, 63, 1, "head", 4, 8, 99),  # fewer than that, and none
):
    lookup = Lookup.of(H, G, D, S, L, near, more=1)
    table = T.choose(lookup.q, lookup.q_pos, lookup.pages, k=k, per=per, shortlist=shortlist, **lookup.settings)
    agree(lookup, table, k, per, shortlist)
"""
)

MOVED = (
    SMALL
    + """
from hf_longctx.ops.kernels.triton_rotate import rotate
for H, G, D, L, R, per in ((3, 1, 96, 2, 96, "group"), (4, 2, 64, 1, 32, "head"), (2, 1, 80, 3, 80, "group")):
    lookup = Lookup.of(H, G, D, 150, L, more=1)
    angle = torch.randn(R // 2).repeat(2)
    wanted = rotate(lookup.q, angle.cos()[None, None], angle.sin()[None, None])
    given = {"k": 4, "per": per, "shortlist": 16, **lookup.settings}
    out = torch.full_like(wanted, float("nan"))
    for at_once in (2**24, 1):  # queries together, and one by one
        T.AT_ONCE = at_once
        moved = T.Moved(angle.cos(), angle.sin(), out.fill_(float("nan")))
        table = T.choose(lookup.q, lookup.q_pos, lookup.pages, **given, moved=moved)
        torch.testing.assert_close(out, wanted, atol=1e-6, rtol=1e-6)
        assert torch.equal(table, T.choose(out, lookup.q_pos, lookup.pages, **given))
T.AT_ONCE = 2**24
"""
)

EDGES = (
    SMALL
    + """
lookup = Lookup.of(2, 1, 64, 100, 3, more=1)
given = {"k": 4, "per": "head", "shortlist": 8, **lookup.settings}
whole = T.choose(lookup.q, lookup.q_pos, lookup.pages, **given)
T.AT_ONCE, usual = 1, T.AT_ONCE  # queries one by one
assert torch.equal(T.choose(lookup.q, lookup.q_pos, lookup.pages, **given), whole)
T.AT_ONCE = usual
assert [list(range(40))[part] for part in T.in_turn(40, usual // 17)] == [list(range(14 * i, min(14 * i + 14, 40)))
                                                                         for i in range(3)], "of about one size"

# equal keys: the lower slots, on both sides of the borders of blocks and pages
given = {"k": 5, "near": 1, "per": "group", "shortlist": 16}
one = torch.ones(1, 1, 1026, 32)
for S, after in ((65, 60), (1026, 1021)):
    pages, held = paged(one[:, :, :S], one[:, :, :S], torch.arange(S)[None], 32)
    last = torch.ones(1, 1, 1, 32), torch.tensor([[S - 1]])
    table = T.choose(*last, pages, after_B=torch.tensor([after]), **given).flatten().tolist()
    right = list(range(after + 1, S - 1))[:5]
    assert table == right + [-1] * (5 - len(right)), (S, table)
never = pages._replace(ready_B=torch.full((1,), torch.iinfo(torch.long).max))  # no codes yet
assert (T.choose(*last, never, after_B=torch.tensor([99]), **given) == -1).all()
"""
)

ASKED = (
    SMALL
    + """
for H, G, L, per, asked in ((6, 3, 1, "group", [0, 1, 0]), (4, 2, 3, "group", [1, 0]), (4, 2, 2, "head", [0, 0, 1, 0])):
    lookup = Lookup.of(H, G, 64, 300, L, more=1)
    given = {"k": 4, "per": per, "shortlist": 16, **lookup.settings}
    whole = T.choose(lookup.q, lookup.q_pos, lookup.pages, **given)
    some = T.choose(lookup.q, lookup.q_pos, lookup.pages, **given, asked_T=torch.tensor(asked).int())
    is_asked = torch.tensor(asked).bool()[:, None, None]
    assert torch.equal(some, whole.masked_fill(~is_asked, -1)) and (some >= 0).any()
"""
)

KEYS = (
    SMALL
    + """
from hf_longctx.ops.kernels import triton_keys as K
for H, G, D, S, L, per, k, near in (
    (3, 1, 96, 65, 2, "group", 4, 20), (2, 2, 80, 300, 1, "head", 8, 30), (4, 2, 64, 300, 3, "head", 5, 20),
    (4, 1, 128, 1100, 1, "group", 3, 20), (2, 1, 64, 90, 1, "group", 40, 50), (1, 1, 64, 63, 1, "head", 4, 99),
):
    lookup = Lookup.of(H, G, D, S, L, near, more=1)
    table = K.choose(lookup.q, lookup.q_pos, lookup.pages, k=k, per=per, **lookup.settings)
    assert [[[set(one) - {-1} for one in some] for some in row] for row in table.tolist()] == lookup.by_keys(k, per)
    live = (table >= 0).sum(-1)
    assert torch.equal(live, torch.tensor([[[len(one) for one in some] for some in row]
                                           for row in lookup.by_keys(k, per)])), "no token twice"
given = {"k": 4, "per": "head", **lookup.settings}
lookup = Lookup.of(2, 1, 64, 100, 3, more=1)
whole = K.choose(lookup.q, lookup.q_pos, lookup.pages, **given)
T.AT_ONCE = 1  # queries one by one
assert torch.equal(K.choose(lookup.q, lookup.q_pos, lookup.pages, **given), whole)
"""
)

CHECKED = (
    SMALL
    + """
from hf_longctx.ops.kernels import lookup as L, triton_keys as K

randoms = L.randoms

def check(by, dtype=torch.float32, dim=32, group=2, per="group", one=True):
    return L._check(torch.device("cpu"), dtype, dim, group, per, by, one)

kernels = {"signs": (T, T.choose), "keys": (K, K.choose)}
for by, (where, choose) in kernels.items():
    for given in ((torch.float32, 96, 1, "group", True), (torch.float16, 64, 3, "head", False)):
        assert check(by, *given) is None, (by, given)
    for seed in range(3):  # whatever a device draws, and however few channels a head has
        torch.manual_seed(seed)
        L.randoms = lambda device, dtype: lambda *shape: torch.randn(*shape).to(dtype)
        for given in ((torch.float32, 8, 2, "head", False), (torch.float32, 16, 2, "group", True)):
            assert check(by, *given) is None, (by, seed, given)
    L.randoms = randoms
    alone = lambda x: x[:1].expand_as(x).contiguous()
    for what, change in {
        "the first row's position": lambda pos, pages, after: (alone(pos), pages, after),
        "the first row's length": lambda pos, pages, after: (
            pos, pages._replace(filled_B=alone(pages.filled_B)), after),
        "the first row's first tokens": lambda pos, pages, after: (pos, pages, alone(after)),
        "keys of the first row": lambda pos, pages, after: (
            pos, pages._replace(k=alone(pages.k), words=alone(pages.words), size=alone(pages.size)), after),
    }.items():
        def wrong(q, pos, pages, *, after_B, **rest):
            pos, pages, after_B = change(pos, pages, after_B)
            return choose(q, pos, pages, after_B=after_B, **rest)
        where.choose = wrong
        assert "choice is off" in str(check(by)), (by, what)
    where.choose = lambda q, *given, **rest: choose(q, *given, **rest)[:, :1].expand(-1, 2, -1, -1)
    assert "choice is off" in str(check(by)), (by, "the table of the first head")
    where.choose = choose
"""
)

FOUND = (
    SMALL
    + """
from hf_longctx.ops.found_tokens import FoundTokens
from hf_longctx.ops.kernels.triton_decode import Keys
from hf_longctx.ops.kernels.triton_found import decode
from hf_longctx.ops.softcap import soft_capped

inf = float("inf")
for H, G, D, V, T, K, margin, softcap, lowered in (
    (4, 2, 32, 48, 2, 5, None, None, None), (4, 2, 32, 32, 2, 5, 0.0, None, None),
    (4, 2, 48, 32, 4, 3, 1.0, 2.0, None), (3, 3, 32, 32, 3, 20, 0.0, None, None),
    (4, 2, 32, 32, 2, 5, None, None, torch.tensor([[0.0, inf, inf, inf]])),  # one head looks up
    (4, 2, 32, 32, 4, 5, None, 2.0, torch.tensor([[0.5], [2.0]])),  # rows have searched different numbers of tokens
):
    torch.manual_seed(H * T)
    S, near, scale, sink = 1100, 70, 0.3, torch.randn(H)
    q, moved, (k, v) = torch.randn(2, H, D), torch.randn(2, H, D), (torch.randn(2, G, S, n) for n in (D, V))
    pos = torch.arange(S).repeat(2, 1)
    pages, held = paged(k, v, pos, 16)
    table = torch.stack([torch.randperm(S - near)[:K] for _ in range(2 * T)]).view(2, T, K)
    table[1, 0], table[0, 0, 1:3], table[0, 0, 0] = -1, -1, 1027  # none, some, one of the second page
    first, window = pos < 4, pos >= S - near
    parts = [Keys(k[:, :, part[0]], v[:, :, part[0]], pos[:, part[0]], None, None, 0, S) for part in (window, first)]
    found = FoundTokens(moved, table, pages, margin, lowered)
    out, lse = decode(q, parts[0], parts[1:], found, pos[:, -1], 0, scale, softcap, sink)
    each = H // G
    here, there = (soft_capped(torch.einsum("bhd,bhsd->bhs", x.double(), k.double().repeat_interleave(each, 1)) * scale,
                               softcap) for x in (q, moved))
    in_table = torch.zeros(2, T, S, dtype=torch.bool)
    for b in range(2):
        for t in range(T):
            in_table[b, t, table[b, t][table[b, t] >= 0]] = True
    if margin is not None:
        whole = here.masked_fill(~window[:, None], float("-inf")).logsumexp(-1, keepdim=True)
        gate = (there >= whole - margin).unflatten(1, (T, -1)).any(2)
        assert (in_table & ~gate).any()
        in_table = in_table & gate
    in_table = in_table.repeat_interleave(H // T, 1)
    none = float("-inf")
    there = there if lowered is None else there - lowered.double()[..., None]
    scores = [here.masked_fill(~(window | first)[:, None], none), there.masked_fill(~in_table, none)]
    scores = torch.cat([*scores, sink.double()[None, :, None].expand(2, -1, -1)], -1)
    values = v.double().repeat_interleave(each, 1)
    weights = scores.softmax(-1)
    true = torch.einsum("bhs,bhsd->bhd", weights[..., :S] + weights[..., S : 2 * S], values)
    torch.testing.assert_close(out, true.float(), atol=2e-6, rtol=2e-6)
    torch.testing.assert_close(lse, scores.logsumexp(-1).float(), atol=2e-5, rtol=2e-6)
"""
)


@pytest.mark.parametrize(
    "code",
    [MAXIMA + WHOLE + OPERAND + BINS + FOUND, CHOOSING + MOVED + EDGES + ASKED + KEYS, CHECKED],
    ids=["parts", "choices", "checked"],
)
def test_kernels(code: str) -> None:
    run(code, "1")
