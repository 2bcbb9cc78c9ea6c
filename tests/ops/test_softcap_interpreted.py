"""Triton kernels with a cap and with values of another width, without a GPU: interpreted, and compiled for an H100."""

from __future__ import annotations

import pytest

from tests.ops.interpreted import needs_triton, run

pytestmark = needs_triton

COMMON = """
import torch
from hf_longctx.ops.branch import Branch
from hf_longctx.ops.kernels import Call
from hf_longctx.ops.masks import BeyondWindow, Causal, Window
from hf_longctx.ops.positions import Positions
from tests.ops.cases import problem, truth

def near(mine, true, bound):
    off = float((mine.double() - true).norm() / true.norm())
    assert off <= bound, off
"""

# float32 in place of half precision, which the interpreter does not round as a GPU would
WINDOW = """
from hf_longctx.ops.kernels.triton_window import window_attention

for shape in ("prefill", "chunk-after-a-cache"):
    for dim, v_dim, softcap in ((48, 16, 1.5), (128, 128, 50.0), (192, 128, None), (136, 200, 1.5), (256, 256, 1.5)):
        p = problem(shape, 2, 1, dim, v_dim=v_dim)
        out, lse = window_attention(p.q, p.k, p.v, 70, dim**-0.5, softcap, tiles=(64, 32, 4, 1))
        true_out, true_lse = truth([p.branch(Window(70))], dim**-0.5, softcap=softcap)
        near(out, true_out, 2e-6)
        near(lse, true_lse, 2e-6)
"""

FEW = """
from hf_longctx.ops.kernels import KERNELS
from hf_longctx.ops.merge import merge, merge_sink

for dim, v_dim in ((16, 16), (48, 80), (192, 128), (256, 256)):
    for softcap in (None, 1.5, 50.0):
        p = problem("few-keys", 4, 2, dim, v_dim=v_dim)
        branch = p.branch(BeyondWindow(160))
        call = Call(branch.positions, branch.mask, dim**-0.5, softcap=softcap)
        out, lse = KERNELS["triton_few"].forward(call, p.q, p.k, p.v)
        true_out, true_lse = truth([branch], dim**-0.5, softcap=softcap)
        near(out, true_out, 2e-6)
        seen = true_lse > -torch.inf
        assert torch.equal(lse > -torch.inf, seen)
        near(lse[seen], true_lse[seen], 2e-6)
        # after another part, with sinks: one pass
        sink = torch.tensor([1.0, -2.0, 5.0, 0.0])
        before, lse_before = KERNELS["reference"].forward(call, p.q.flip(0), p.k, p.v)
        true = merge_sink(*merge(before, lse_before, true_out, true_lse), sink)
        both = KERNELS["triton_few"].merge_(call, p.q, p.k, p.v, before.clone(), lse_before.clone(), sink)
        near(both[0], true[0], 2e-6)
        near(both[1], true[1], 2e-6)
"""

# the check on first use, also with kernels that are right of the first row alone
CHECKED = """
from unittest import mock
from hf_longctx.ops.kernels import KERNELS, triton_few, triton_window
from hf_longctx.ops.kernels.check import check_kernel

kind = torch.device("cpu"), torch.float32
for dim, capped in ((48, True), (192, True)):
    assert check_kernel(KERNELS["triton_window"], *kind, dim, capped) is None
for dim, capped in ((48, False), (48, True), (192, True)):
    assert check_kernel(KERNELS["triton_few"], *kind, dim, capped) is None

def first(x):
    return x[:1].expand_as(x)

plain = triton_window.window_attention
for wrong in (lambda q, k, *rest: plain(q, first(k), *rest), lambda q, k, v, *rest: plain(q, k, first(v), *rest)):
    with mock.patch.object(triton_window, "window_attention", wrong):
        assert "its output is off by" in str(check_kernel(KERNELS["triton_window"], *kind, 48, True))
added = triton_few.add_few_
for wrong in (
    lambda q, k, *rest: added(q, first(k), *rest),
    lambda q, k, v, out, lse, q_pos, k_pos, *rest: added(q, k, v, out, lse, q_pos, first(k_pos), *rest),
    lambda q, k, v, out, lse, q_pos, k_pos, *rest: added(q, k, v, out, lse, first(q_pos), k_pos, *rest),
):
    with mock.patch.object(triton_few, "add_few_", wrong):
        assert "its output is off by" in str(check_kernel(KERNELS["triton_few"], *kind, 48))
"""

DECODE = """
from hf_longctx.ops.attend import attend
from hf_longctx.ops.kernels import FUSED

FUSED[0].unsupported_reason = lambda branches, softcap: None
sink = torch.tensor([1.0, -2.0, 5.0, 0.0])
for dim, v_dim, softcap, sink_H in ((48, 16, 1.5, None), (192, 128, None, None), (64, 96, 50.0, sink)):
    p = problem("one-token", 4, 2, dim, v_dim=v_dim)
    branches = [p.branch(Window(64)), p.branch(BeyondWindow(64))]
    out = attend(branches, scale=dim**-0.5, sink_H=sink_H, softcap=softcap)
    near(out, truth(branches, dim**-0.5, sink_H, softcap)[0], 2e-6)
"""

TANH = """
import triton
import triton.language as tl
from hf_longctx.ops.kernels.triton_cap import capped

@triton.jit
def cap(x, out, scale, CAP: tl.constexpr, PRECISE: tl.constexpr, N: tl.constexpr):
    at = tl.arange(0, N)
    tl.store(out + at, capped(tl.load(x + at), scale, CAP, False, PRECISE))

N = 1 << 16
x = torch.cat([torch.linspace(-400, 400, N // 2), torch.randn(N // 2) * torch.logspace(-8, 2, N // 2)])
for softcap in (1.5, 50.0):
    true = softcap * torch.tanh(x.double() * 0.5 / softcap)
    for precise in (False, True):
        out = torch.empty_like(x)
        cap[(1,)](x, out, 0.5, softcap, precise, N)
        assert out.isfinite().all()
        off = (out.double() - true).abs()
        assert off.max() <= 2.5e-7 * softcap, off.max()
        if precise:
            small = true.abs() < 0.29 * softcap
            assert (off / true.abs())[small & (true != 0)].max() <= 4e-7
"""

COMPILED = """
import triton
from tests.ops.interpreted import compile_for_h100
from hf_longctx.ops.kernels import triton_decode as T, triton_few as F, triton_window as W

halves = {n: "*bf16" for n in ("q", "k", "v", "out")}
for dim, extra, padded, v_dim, v_padded, cap in (
    (128, 0, 128, 128, 128, 50.0), (256, 0, 256, 256, 256, 50.0), (128, 64, 192, 128, 128, 0.0),
):
    M, N, warps, stages = W.TILES[max(padded, v_padded)]
    sizes = dict(D=padded, DP=dim, EP=extra, V=v_dim, VP=v_padded, GROUP=2, M=M, N=N, CAP=cap, FAST=cap > 0)
    kernel = compile_for_h100(W._window, sizes, {**halves, "lse": "*fp32"}, num_warps=warps, num_stages=stages)
    assert kernel.metadata.shared < 227 * 1024, (padded, v_dim, kernel.metadata.shared)
for dim, v_dim in ((128, 128), (256, 256)):
    sizes = dict(D=dim, DP=dim, V=v_dim, VP=v_dim, SP=16, GROUP=2, ROWS=128, CAP=50.0, SINK=True)
    kinds = {"lse": "*fp32", "sink": "*bf16", "q_pos": "*i64", "k_pos": "*i64", "near": "i64", "far": "i64"}
    compile_for_h100(F._few, sizes, {**halves, **kinds})
for dtype, (tile, warps, stages, _) in (("*bf16", T.HALF), ("*fp32", T.FULL)):
    for dim, v_dim, half in ((256, 256, 128), (192, 128, 32)):
        sizes = dict(D=dim, V=v_dim, VP=v_dim, R2=half, RP=half, EP=max(16, triton.next_power_of_2(dim - 2 * half)),
                     GROUP=2, GP=16, N=tile, CAP=50.0, Q_ROTATE=True, K_ROTATE=True, SECOND=True, Q_ROTATE2=False,
                     K_ROTATE2=True)
        kinds = {n: dtype for n in ("k", "v", "q_cos", "q_sin", "k_cos", "k_sin")}
        kinds |= {"k_pos": "*i64", "near": "i64", "far": "i64"}
        kinds |= {f"{name}2": kind for name, kind in kinds.items()}
        kinds |= {"q": dtype, "q_pos": "*i64", "out": "*fp32", "lse": "*fp32"}
        kernel = compile_for_h100(T._part, sizes, kinds, num_warps=warps, num_stages=stages)
        assert kernel.metadata.shared < 227 * 1024, (dtype, dim, kernel.metadata.shared)
"""

CODES = {
    "window": (WINDOW, "1"),
    "few": (FEW, "1"),
    "checked": (CHECKED, "1"),
    "decode": (DECODE, "1"),
    "tanh": (TANH, "1"),
}


@pytest.mark.parametrize("name", CODES)
def test_interpreted(name: str, tmp_path_factory: pytest.TempPathFactory) -> None:
    code, interpret = CODES[name]
    # Triton reads a kernel's source, which must be in a file
    file = tmp_path_factory.mktemp(name) / "code.py"
    file.write_text(COMMON + code)
    run(f"import runpy; runpy.run_path({str(file)!r})", interpret)


def test_compiled() -> None:
    run(COMPILED, "0")
