"""Soft-capped scores, sinks, and values of another width than keys, by every GPU kernel, against float64."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
import torch

from hf_longctx.ops import prefix, scattered
from hf_longctx.ops.attend import attend
from hf_longctx.ops.branch import Branch
from hf_longctx.ops.kernels import FUSED, KERNELS, choose
from hf_longctx.ops.kernels.check import check_kernel
from hf_longctx.ops.masks import BeyondWindow, Causal, Window
from hf_longctx.ops.merge import merge_sink
from hf_longctx.ops.positions import Positions
from tests.gpu.test_kernels_gpu import FLEX, MASKS, SCALE, TOLERANCE, call_of, check, check_gradients, off
from tests.ops.cases import LONG, Problem, problem, truth

pytestmark = pytest.mark.gpu

CAP = 1.5  # scores here are about that large or twice as large
DIMS = [(64, 64), (128, 128), (192, 192), (256, 256), (192, 128), (96, 80), (64, 192)]
SHAPES = ("prefill", "chunk-after-a-cache", "window-cache", "left-padded", "few-keys")
FAST = ("triton_few", "triton_window", "flash_attn")
dtypes = pytest.mark.parametrize("dtype", TOLERANCE, ids=lambda d: str(d).removeprefix("torch."))


def of(shape: str, dims: tuple[int, int], dtype: Any, heads: tuple[int, int] = (6, 2)) -> Problem:
    return problem(shape, *heads, dims[0], dtype=dtype, device="cuda", v_dim=dims[1])


@dtypes
@pytest.mark.parametrize("dim", [64, 128, 192, 256])
@pytest.mark.parametrize("mask", ["causal", "window", "outside"])
@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("kernel", FAST)
def test_a_kernel_caps_scores(kernel: str, shape: str, mask: str, dim: int, dtype: Any) -> None:
    p = of(shape, (dim, dim), dtype)
    check(KERNELS[kernel], p.branch(MASKS[mask]), p, dtype, CAP)


@dtypes
@pytest.mark.parametrize("dim", [64, 80, 96, 128, 192, 256])
@pytest.mark.parametrize("kernel", ["triton_few", "triton_window"])
def test_the_check_admits_kernels_with_a_cap(kernel: str, dim: int, dtype: Any) -> None:
    assert check_kernel(KERNELS[kernel], torch.device("cuda", 0), dtype, dim, capped=True) is None


@dtypes
@pytest.mark.parametrize("dim", [192, 256])
@pytest.mark.parametrize("shape", ["prefill", "chunk-after-a-cache", "window-cache"])
def test_the_window_kernel_takes_wide_heads(shape: str, dim: int, dtype: Any) -> None:
    for mask in ("causal", "window", "wide-window"):
        p = of(shape, (dim, dim), dtype)
        check(KERNELS["triton_window"], p.branch(MASKS[mask]), p, dtype)


@pytest.mark.parametrize(("shape", "mask"), FLEX, ids=map("-".join, FLEX))
def test_flex_caps_scores(shape: str, mask: str) -> None:
    p = of(shape, (64, 64), torch.bfloat16, (4, 2))
    check(KERNELS["flex"], p.branch(MASKS[mask]), p, torch.bfloat16, CAP)


@pytest.mark.parametrize("name", ["cudnn", "cuda_flash"])
def test_torchs_kernels_have_no_cap(name: str) -> None:
    p = of("prefill", (64, 64), torch.bfloat16)
    assert KERNELS[name].unsupported_reason(call_of(p.branch(Causal())), p.q, p.k) is None
    assert KERNELS[name].unsupported_reason(call_of(p.branch(Causal()), CAP), p.q, p.k) == "it has no soft-capping"
    with pytest.raises(ValueError, match=f"kernel='{name}' cannot do this attention: it has no soft-capping"):
        attend([p.branch(Causal())], scale=SCALE, softcap=CAP, kernel=name)


@pytest.mark.parametrize("dim", [64, 128, 192, 256])
def test_who_is_chosen(dim: int) -> None:
    """The Triton window with a cap, and at wide heads, where it takes about half of flash attention's time."""
    p = of("prefill", (dim, dim), torch.bfloat16)
    for mask in (Causal(), Window(64)):
        branch = p.branch(mask)
        assert choose(call_of(branch, CAP), p.q, p.k).name == "triton_window"
        if dim > 128:
            assert choose(call_of(branch), p.q, p.k).name == "triton_window"


@pytest.mark.parametrize("sinks", [False, True], ids=["", "sink"])
@pytest.mark.parametrize("softcap", [None, CAP], ids=["", "cap"])
@pytest.mark.parametrize("dims", DIMS, ids=str)
@pytest.mark.parametrize("shape", LONG)
def test_a_window_and_the_first_keys(shape: str, dims: tuple[int, int], softcap: float | None, sinks: bool) -> None:
    """Whatever kernels are chosen: values, and gradients of queries, keys, values and the sink."""
    p = of(shape, dims, torch.bfloat16)
    for x in (p.q, p.k, p.v):
        x.requires_grad_()
    near, n_first = p.branch(Window(64)), 10
    positions = Positions(p.q_pos, p.k_pos[:, :n_first], padded=near.positions.padded)
    far = Branch(p.q, p.k[:, :, :n_first], p.v[:, :, :n_first], positions, BeyondWindow(64))
    sink = torch.randn(6, device="cuda").requires_grad_() if sinks else None
    out = attend([near, far], scale=SCALE, softcap=softcap, sink_H=sink)
    true = truth([near, far], SCALE, sink, softcap)[0]
    assert out.shape == true.shape
    assert off(out, true) <= TOLERANCE[torch.bfloat16][0]
    check_gradients(out, true, p)
    if sink is not None:
        (mine,), (other,) = (torch.autograd.grad(y, sink, p.grad.to(y.dtype)) for y in (out, true))
        assert off(mine, other.double()) <= TOLERANCE[torch.bfloat16][1]


# the kernel is compiled for each; without a cap only what other tests have not
ONE = [(dims, CAP) for dims in ((64, 64), (256, 256), (192, 128), (96, 80), (64, 192))]
ONE += [((64, 64), 50.0), *((dims, None) for dims in ((192, 128), (96, 80), (64, 192)))]


@pytest.mark.parametrize(("dims", "softcap"), ONE, ids=str)
@pytest.mark.parametrize("dtype", [torch.float32, *TOLERANCE], ids=lambda d: str(d).removeprefix("torch."))
def test_one_token(dtype: Any, dims: tuple[int, int], softcap: float | None) -> None:
    """All branches by one kernel, with and without a sink. fp32 is exact to its own rounding, near 0 as well."""
    p = of("one-token", dims, dtype)
    branches = [p.branch(Window(64)), p.branch(BeyondWindow(64))]
    assert FUSED[0].unsupported_reason(branches, softcap) is None
    for sink in (None, torch.randn(6, device="cuda")):
        out = attend(branches, scale=SCALE, softcap=softcap, sink_H=sink)
        true = truth(branches, SCALE, sink, softcap)[0]
        assert out.dtype == dtype
        assert out.shape == true.shape
        assert off(out, true) <= (3e-6 if dtype == torch.float32 else TOLERANCE[dtype][1])


def test_a_sink_needs_no_second_output() -> None:
    out = torch.randn(1, 4096, 16, 128, device="cuda", dtype=torch.bfloat16)
    lse, sink = torch.randn(1, 16, 4096, device="cuda"), torch.randn(16, device="cuda")
    share = torch.sigmoid(lse.double() - sink.double()[:, None]).transpose(1, 2)[..., None]
    expected = out.double() * share
    torch.cuda.synchronize()
    torch.cuda.reset_peak_memory_stats()
    before = torch.cuda.memory_allocated()
    found, _ = merge_sink(out, lse, sink)
    assert torch.cuda.max_memory_allocated() - before < out.numel(), "half of it, at most"
    assert found.data_ptr() == out.data_ptr()
    assert off(found, expected) <= 4e-3


def test_gradients_with_a_cap_take_memory_of_a_block_of_queries() -> None:
    """Not of all scores, which are 2 GiB here."""
    L, H, D = 16384, 2, 256
    q, k, v = (torch.randn(1, H, L, D, device="cuda", dtype=torch.bfloat16, requires_grad=True) for _ in range(3))
    pos = torch.arange(L, device="cuda")[None]
    positions = Positions(pos, pos, same_rows=True, consecutive=True, padded=False)
    out = attend([Branch(q, k, v, positions, Causal())], scale=D**-0.5, softcap=50.0)
    torch.cuda.synchronize()
    torch.cuda.reset_peak_memory_stats()
    before = torch.cuda.memory_allocated()
    out.float().square().sum().backward()
    assert torch.cuda.max_memory_allocated() - before < 2**30


@pytest.mark.parametrize("v_dim", [128, 64])
def test_attention_at_any_places_takes_values_of_another_width(v_dim: int) -> None:
    q, k, v = (torch.randn(*s, device="cuda").bfloat16() for s in ((6, 5, 96), (2, 300, 96), (2, 300, v_dim)))
    places = scattered.Places(torch.tensor([3, 40, 41, 200, 299]), unused=300)
    true = scattered.attend(q.cpu().float(), k.cpu().float(), v.cpu().float(), places, 0.1)
    out = scattered.attend(q, k, v, scattered.Places(places.pos_L.cuda(), 300), 0.1)
    assert out.shape == (5, 6, v_dim)
    assert off(out.cpu(), true.double()) <= TOLERANCE[torch.bfloat16][0]


@pytest.mark.parametrize("tokens", [1, 4])
def test_a_shared_prefix_takes_values_of_another_width(tokens: int) -> None:
    def random(*shape: int) -> torch.Tensor:
        return torch.randn(*shape, device="cuda").bfloat16()

    pos = 500 + torch.arange(20, device="cuda").expand(3, -1)
    query = prefix.PrefixQuery(random(3, 6, tokens, 192), pos[:, -tokens:], None, 192**-0.5)
    own = prefix.SuffixKeys(random(3, 2, 20, 192), random(3, 2, 20, 128), pos, True, False)
    levels = [prefix.PrefixKeys(random(1, 2, 500, 192), random(1, 2, 500, 128), torch.arange(500, device="cuda")[None])]
    out = prefix.attend(query, own, levels)
    double = (
        replace(query, q_BHLD=query.q_BHLD.double(), memo={}),
        replace(own, k_BGSD=own.k_BGSD.double(), v_BGSD=own.v_BGSD.double()),
        [replace(s, k_1GPD=s.k_1GPD.double(), v_1GPD=s.v_1GPD.double()) for s in levels],
    )
    assert out.shape == (3, tokens, 6, 128)
    assert off(out, prefix.attend(*double, kernel="reference")) <= TOLERANCE[torch.bfloat16][1]
