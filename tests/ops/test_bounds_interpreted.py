"""What watches kernels in Triton's interpreter notices what is not theirs. Needs triton."""

from __future__ import annotations

from tests.ops.interpreted import needs_triton, run

pytestmark = needs_triton

WATCHED = """
import torch
import triton
import triton.language as tl
from hf_longctx.ops.checked import disagreement
from tests.ops.bounds import OutOfBounds

@triton.jit
def copy(x, out, n, x_b, o_b, N: tl.constexpr):
    row, at = tl.program_id(0), tl.arange(0, N)
    tl.store(out + row * o_b + at, tl.load(x + row * x_b + at, at < n, 0.0), at < n)

@triton.jit
def copy_from(address, out, n, N: tl.constexpr):
    at = tl.arange(0, N)
    tl.store(out + at, tl.load(tl.load(address).to(tl.pointer_type(tl.float32)) + at, at < n, 0.0), at < n)

@triton.jit
def count(to):
    tl.atomic_add(to + tl.program_id(0), 1)

def refused(launch, what):
    try:
        launch()
    except OutOfBounds as error:
        assert what in str(error), error
    else:
        raise AssertionError("nobody noticed")

one, out = torch.arange(5.0)[None], torch.empty(2, 5)
assert out.isnan().all() and (torch.empty(3, dtype=torch.long) == torch.iinfo(torch.long).max).all()
copy[(2,)](one, out, 5, 0, 5, N=8)
assert torch.equal(out, one.expand(2, -1))
refused(lambda: copy[(2,)](one, out, 5, 5, 5, N=8), "copy reads 5 of 5 elements that are in no tensor")
refused(lambda: copy[(2,)](one, out, 5, 5, 5, N=8), "by 0 bytes, is x")
refused(lambda: copy[(2,)](one, out[:1], 5, 0, 5, N=8), "copy writes")
refused(lambda: copy[(1,)](one[:, 1:], out, 5, 0, 5, N=8), "copy reads")  # its storage goes on, the view does not
refused(lambda: copy[(2,)](one, out, 5, -5, 5, N=8), "copy reads")
refused(lambda: count[(3,)](torch.zeros(2).int()), "count changes")

address = torch.tensor([one.data_ptr()])
copy_from[(1,)](address, out, 5, N=8)
refused(lambda: copy_from[(1,)](address, out.expand(2, 5)[0], 6, N=8), "copy_from")
address -= 4
refused(lambda: copy_from[(1,)](address, out, 5, N=8), "copy_from reads")

# a kernel's check does not take it for an error of the compiler
refused(lambda: disagreement(lambda: copy[(2,)](one, out, 5, 5, 5, N=8), {"copy": one}, one.dtype), "copy reads")
"""


def test_what_is_read_or_written_elsewhere_is_an_error_and_new_memory_holds_nothing_of_use() -> None:
    run(WATCHED, "1")
