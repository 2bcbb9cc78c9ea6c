"""The kernels of a window's token without a GPU: run by Triton's interpreter, compiled for an H100. Needs triton."""

from __future__ import annotations

from tests.ops.interpreted import needs_triton, run

pytestmark = needs_triton

RINGS = """
import torch
from hf_longctx.cache.ring import Ring
from hf_longctx.ops.kernels import ring as kernels

def by(kinds, B, G, D, V, waiting_moves, types):
    torch.manual_seed(B * D)
    kernels.DEVICES = kinds
    ring = Ring(B, 7, torch.device("cpu"), start=4, read=5, waiting_moves=waiting_moves)
    ring.pos_BN[:, :4] = torch.arange(4)
    buffers = torch.zeros(B, G, 7, D, dtype=types[0]), torch.zeros(B, G, 7, V, dtype=types[0])
    seen = []
    for t in range(20):
        pos = torch.full((1, 1), 4 + t) if B == 1 else torch.where(torch.rand(B, 1) < 0.7, 4 + t, -1)
        assert kernels.begins(ring.pos_BN) == bool(kinds)
        ring.begin(pos)
        new = (torch.randn(B, 1, G, n).transpose(1, 2).to(types[1]) for n in (D, V))
        ring.write(*buffers, *new)
        ring.end()
        if t % 6 == 5:
            ring.take_back()
        held = ring.pos_BN, ring.column_BN, ring.next_B1, ring.evicted_B, ring.last_B1, ring.moved_B1, *buffers
        seen.append([x.clone() for x in held])
    return seen

bf16, fp32 = torch.bfloat16, torch.float32
for given in ((1, 2, 16, 16, False, (fp32, fp32)), (3, 1, 20, 12, False, (bf16, fp32)),
              (2, 3, 8, 8, True, (bf16, bf16))):
    for step, pair in enumerate(zip(by(("cpu",), *given), by((), *given), strict=True)):
        assert all(torch.equal(one, other) for one, other in zip(*pair, strict=True)), (given, step)

kernels.DEVICES = ("cpu",)
to = torch.zeros(1, 1, 7, 8)
learned = torch.ones(1, 1, 1, 8, requires_grad=True)
assert not kernels.writes(learned, learned, to, to), "torch writes keys that are learned from"
from hf_longctx.ops.kernels import triton_ring
own = triton_ring.begin
triton_ring.begin = lambda pos, *held: own(pos + 1, *held)
assert "positions" in kernels._check_begin(torch.device("cpu"))
triton_ring.write = lambda *given: None
assert "not there" in kernels._check_write(torch.device("cpu"), fp32, fp32, fp32, fp32, 8, 8)
"""

TURNS = """
import torch
from hf_longctx.ops.kernels import triton_turns, turns
torch.manual_seed(0)
triton_turns.ELEMENTS = 256
bf16, fp32 = torch.bfloat16, torch.float32
for B, S, N, R, dtype in ((1, 33, 20, 16, fp32), (3, 40, 40, 24, bf16), (2, 5, 100, 2, fp32)):
    table = torch.randn(2, N, R).to(dtype)
    pos = torch.stack([torch.randperm(S) for _ in range(B)])
    pos[:, 3], pos[:, 4] = -1, -7
    here = torch.randint(S // 2, S, (B, 1)) if B > 1 else torch.tensor([[S - 1]])
    got = triton_turns.turns(*table, here, pos)
    for x, rows in zip(got, table, strict=True):
        for b in range(B):
            for s, at in enumerate(pos[b].tolist()):
                distance = int(here[b]) - at
                right = rows[distance] if at >= 0 and 0 <= distance < N else torch.zeros_like(rows[0])
                assert torch.equal(x[b, s], right), (b, s)
turns.DEVICES = ("cpu",)
assert turns._check(torch.device("cpu"), torch.float32, 16) is None
own = triton_turns.turns
triton_turns.turns = lambda cos, sin, *given: own(sin, cos, *given)
assert "table" in turns._check(torch.device("cpu"), torch.float32, 16)
"""

COMPILED = """
import torch
from tests.ops.interpreted import compile_launches
from hf_longctx.ops.kernels import triton_ring, triton_turns

kernels = compile_launches()
for B, G, D, dtype in ((1, 8, 128, torch.bfloat16), (4, 3, 64, torch.float16), (1, 1, 96, torch.float32)):
    one, longs = torch.zeros(B, 1, dtype=torch.long), torch.zeros(B, 4096, dtype=torch.long)
    for waiting_moves in (False, True):
        triton_ring.begin(one, longs, longs, one, one, one[:, 0], one, one, waiting_moves)
    new, to = torch.zeros(B, 1, G, D, dtype=dtype).transpose(1, 2), torch.zeros(B, G, 4096, D, dtype=dtype)
    triton_ring.write(new, new, to, to, one)
    triton_ring.write(new.float(), new.float(), to, to, one)
    table = torch.zeros(8192, D, dtype=dtype)
    triton_turns.turns(table, table, one, longs)
assert len({kernel.hash for kernel in kernels}) >= 9, len(kernels)
"""


def test_a_ring_by_kernels_is_the_ring_by_torch_with_rows_that_wait_and_tokens_that_come_again() -> None:
    run(RINGS, "1")


def test_turns_are_the_rows_of_their_distances() -> None:
    run(TURNS, "1")


def test_they_compile_for_an_h100() -> None:
    run(COMPILED, "0")
