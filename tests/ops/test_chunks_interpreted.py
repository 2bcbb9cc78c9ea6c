"""Chunks that one kernel puts into pages, of the kinds that models give, in Triton's interpreter. Needs triton."""

from __future__ import annotations

import pytest

from tests.ops.interpreted import needs_triton, run
from tests.ops.test_pages_interpreted import LAUNCHES

pytestmark = needs_triton

GIVEN = (
    LAUNCHES
    + """
S, B = 61, 2
for G, D, V, first, dtype in ((2, 64, 64, 6, torch.float32), (3, 20, 12, 6, torch.float16)):
    pos = torch.arange(S).expand(B, -1)
    # heads of a fused projection, which begin anywhere in its rows, and values that heads share
    k = torch.randn(B, S, G, D + 5).to(dtype).transpose(1, 2)[..., 3 : 3 + D]
    v = torch.randn(B, 1, S, V + 3).to(dtype)[..., 1 : 1 + V].expand(-1, G, -1, -1)
    x = KeyValues(k, v, pos, pos)
    ours, plain = ([StoreRow(first, paged=True, on_host=ON_HOST) for _ in range(B)] for _ in range(2))
    ours, plain, start = Store(ours), Store(plain), 0
    for count, read_inside in ((13, False), (20, False), (1, True), (2, False), (8, True), (17, False)):
        new = part(x, slice(start, start + count))
        store_row.stored = coding.stored
        wrong = KeyValues(9 * torch.randn_like(new.k), torch.randn_like(new.v), new.pos, new.column)
        with torch.inference_mode(read_inside):
            ours.write(wrong, False)  # a forward that fails before it counts
        launches.clear()
        ours.append(new, False)
        # of the last but one, inference mode has made a page, which torch does not write to outside
        assert launches == ([] if count in (13, 8) else [(count, not ON_HOST)] * B), (launches, count)
        store_row.stored = lambda *given: False
        plain.append(new, False)
        start += count
        equal(ours, plain)
"""
)


@pytest.mark.parametrize("on_host", [False, True])
def test_a_chunk_is_kept_from_any_strides_and_after_a_forward_that_failed(on_host: bool) -> None:
    run(f"ON_HOST = {on_host}\n" + GIVEN, "1")


CHECKS = """
import torch
from hf_longctx.ops.kernels import coding, lookup, pages, triton_coding
cpu, fp16, fp32 = torch.device("cpu"), torch.float16, torch.float32
for kept in (True, False):
    assert coding._check_stored(cpu, fp32, 32, 32, True, kept) is None
with torch.autocast("cpu", torch.bfloat16):  # a first forward may be
    for dtype in (fp16, fp32):
        assert coding._check(cpu, dtype, 32) is None
        assert coding._check_stored(cpu, dtype, 32, 32, True) is None
        assert pages._check(cpu, dtype, 32, 32) is None
    assert lookup._check(cpu, fp16, 32, 1, "group", "keys", True) is None
own = triton_coding.store
def all_of_it(k, v, at, start, page, centre, kept):
    own(k, v, at, start, page, centre, True)
triton_coding.store = all_of_it
assert coding._check_stored(cpu, fp32, 32, 32, True) is None
assert "do not hold" in coding._check_stored(cpu, fp32, 32, 32, True, False), "codes alone are asked for"
"""


def test_the_first_use_under_autocast_is_no_false_alarm_and_codes_alone_are_checked_too() -> None:
    run(CHECKS, "1")
