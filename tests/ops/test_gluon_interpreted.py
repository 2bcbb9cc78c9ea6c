"""The kernels that multiply bits, without a GPU: run by Triton's interpreter as `tests.ops.gluon` translates them."""

from __future__ import annotations

from pathlib import Path

from tests.ops.interpreted import needs_triton, run

pytestmark = needs_triton

CHOOSING = """
from pathlib import Path
import torch
from hf_longctx.ops import pages as sizes
from hf_longctx.ops.paged import paged
from tests.ops.gluon import interpreted
interpreted("triton_bits", Path(FOLDER))
from hf_longctx.ops.kernels import triton_lookup as T
from tests.ops.lookups import Lookup, agree
sizes.PAGE = 1024  # small pages: the interpreter takes its time for every program
for H, G, D, n, shortlist, per, L in (
    (3, 3, 64, 200, 8, "group", 1), (8, 1, 256, 90, 8, "group", 1), (2, 1, 96, 90, 20, "head", 1),
    (6, 2, 64, 200, 8, "group", 5), (10, 2, 160, 90, 8, "group", 2), (6, 2, 96, 90, 20, "head", 3),
):
    lookup = Lookup.of(H, G, D, n, L, more=1)
    given = {"k": 4, "per": per, "shortlist": shortlist, **lookup.settings}
    plain = T.choose(lookup.q, lookup.q_pos, lookup.pages, **given)
    table = T.choose(lookup.q, lookup.q_pos, lookup.pages, **given, by_bits=True)
    agree(lookup, table, 4, per, shortlist)
    assert torch.equal(plain, table)
    asked = torch.arange(table.shape[1]) % 2
    some = T.choose(lookup.q, lookup.q_pos, lookup.pages, **given, by_bits=True, asked_T=asked.int())
    assert torch.equal(some, table.masked_fill(asked[:, None, None] == 0, -1))

# the check on first use, also with a kernel that is right of the first row alone
from unittest import mock
from hf_longctx.ops.kernels import bits, triton_bits
with mock.patch.object(torch.cuda, "get_device_capability", lambda _: (9, 0)):
    for dim, group, per in ((64, 3, "group"), (96, 2, "head"), (160, 5, "group")):
        for one in (True, False):
            assert bits._check(torch.device("cpu"), dim, group, per, one) is None
    plain = T.maxima
    def wrong(*given):
        best, state = plain(*given)
        if given[3].by_bits:
            best[1] = best[0]
        return best, state
    with mock.patch.object(T, "maxima", wrong):
        assert "not those" in bits._check(torch.device("cpu"), 64, 3, "group", True)
    # and of the first query of several
    also = T.survivors
    def first(*given):
        number, slot = also(*given)
        return number, slot.unflatten(0, (-1, 3))[:, :1].expand(-1, 3, -1).flatten(0, 1) if given[4].by_bits else slot
    with mock.patch.object(T, "survivors", first):
        assert "not those" in bits._check(torch.device("cpu"), 64, 3, "group", False)

# keys that are all alike: the lower slots
one = torch.ones(1, 1, 2000, 32)
pages, held = paged(one, one, torch.arange(2000)[None], 32)
given = {"k": 5, "near": 1, "per": "group", "shortlist": 16, "after_B": torch.tensor([1100])}
table = T.choose(torch.ones(1, 1, 1, 32), torch.tensor([[1999]]), pages, **given, by_bits=True)
assert table.flatten().tolist() == list(range(1101, 1106))
"""


def test_products_of_bits(tmp_path: Path) -> None:
    run(f"FOLDER = {str(tmp_path)!r}\n" + CHOOSING, "1")
