"""The kernels of recorded edits without a GPU: run by Triton's interpreter, compiled for an H100. Needs triton."""

from __future__ import annotations

import pytest

from tests.ops.interpreted import needs_triton, run

pytestmark = needs_triton

ATTENTION = """
import torch
from hf_longctx.ops import scattered
from hf_longctx.ops.kernels import triton_places
triton_places.SMALLEST = 64  # several parts of short texts
torch.manual_seed(0)
for H, G, D, S, L in ((4, 2, 64, 300, 70), (6, 2, 32, 130, 40), (2, 1, 128, 257, 64), (3, 3, 96, 200, 10)):
    q, (k, v) = torch.randn(L, H, D).transpose(0, 1), torch.randn(2, G, S, D)
    pos = torch.randint(0, S - 1, (L,)).sort()[0]
    pos[-5:] = S - 1
    places = scattered.Places(pos, S - 1)
    ours = triton_places.attend(q, k, v, pos, S - 1, D**-0.5)
    torch.testing.assert_close(ours, scattered.attend(q, k, v, places, D**-0.5), atol=2e-6, rtol=2e-6)
    assert not ours[-1].any(), "a query that is left over sees nothing"
"""

MOVING = """
import torch
from hf_longctx.ops.kernels.triton_move import move
from hf_longctx.editing.graph.move import fits, table_of
torch.manual_seed(0)
for D, R, G, S in ((64, 64, 2, 100), (64, 16, 3, 70), (80, 20, 1, 130)):
    tensors = [torch.randn(1, G, S + 8, D)[:, :, 4 : S + 4] for _ in range(4)]
    assert all(map(fits, tensors)) and not fits(tensors[0].transpose(2, 3))
    table = torch.tensor(table_of(tensors, [True, False])).view(4, 4)
    source = torch.randint(0, S, (S + 20,))
    source[::7] = -1
    angle = torch.randn(S + 20, R // 2)
    cos, sin = (torch.cat([f(angle)] * 2, -1) for f in (torch.cos, torch.sin))
    out = torch.full((4, G, S + 30, D), 9.0)
    move(table, source, out, (cos, sin), R)
    for i, x in enumerate(tensors):
        expected = x[0][:, source.clamp(min=0)]
        if i == 0:
            low, high = expected[..., :R].chunk(2, -1)
            turned = expected[..., :R] * cos + torch.cat([-high, low], -1) * sin
            expected = torch.cat([turned, expected[..., R:]], -1)
        got = out[i, :, : S + 20]
        torch.testing.assert_close(got[:, source >= 0], expected[:, source >= 0], atol=1e-6, rtol=1e-6)
        assert (got[:, source < 0] == 9).all() and (out[i, :, S + 20 :] == 9).all()
"""

COMPILED = """
import triton
from tests.ops.interpreted import compile_for_h100
from hf_longctx.ops.kernels import triton_move as V
from hf_longctx.ops.kernels import triton_places as P

up = triton.next_power_of_2
for D in (32, 64, 80, 128, 256):
    M, N, warps, stages = P.TILES[max(64, up(D))]
    pointers = {"q": "*bf16", "k": "*bf16", "v": "*bf16", "pos": "*i64", "out": "*fp32", "lse": "*fp32"}
    sizes = dict(D=D, DP=up(D), GROUP=4, M=M, N=N)
    kernel = compile_for_h100(P._places, sizes, pointers, num_warps=warps, num_stages=stages)
    assert kernel.metadata.shared < 227 * 1024
pointers = {"table": "*i64", "source": "*i64", "out": "*bf16", "like": "*bf16", "cos": "*fp32", "sin": "*fp32"}
for D, R, turn in ((64, 64, True), (80, 20, True), (128, 128, False)):
    sizes = dict(D=D, R=R, HALF=up(max(R // 2, 8)), REST=up(max(D - R, 8)), TURN=turn, TOKENS=V.TOKENS)
    compile_for_h100(V._move, sizes, pointers)
"""


@pytest.mark.parametrize(("code", "interpret"), [(ATTENTION, "1"), (MOVING, "1"), (COMPILED, "0")],
                         ids=["attention", "moving", "compiled"])  # fmt: skip
def test_kernel(code: str, interpret: str) -> None:
    run(code, interpret)
