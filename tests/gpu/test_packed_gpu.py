"""Packed documents on a GPU: every kernel that takes them against the definition, and none makes the host wait."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest
import torch

from hf_longctx.ops.attend import attend
from hf_longctx.ops.branch import Branch
from hf_longctx.ops.kernels import KERNELS, Call
from hf_longctx.ops.masks import Causal, Full, Mask, Packed, Window
from hf_longctx.ops.positions import Positions
from hf_longctx.ops.segments import segments_of
from tests.gpu.test_kernels_gpu import SCALE, TOLERANCE, call_of, check, off, plain
from tests.ops.cases import gradients, truth
from tests.ops.packs import Lengths, branch_of, known, packed

pytestmark = pytest.mark.gpu

PACKS: dict[str, Lengths] = {
    "odd": [(161, 161), (40, 40), (1, 1), (331, 331)],
    "long-ones": [(161, 161), (40, 40), (331, 331)],
    "single-tokens": [(1, 1)] * 70,
    "some-without-queries-or-keys": [(0, 70), (150, 150), (33, 0), (0, 2), (291, 291), (4, 0)],
    "after-a-cache": [(33, 200), (170, 170), (20, 151)],
    "steps-after-a-cache": [(1, 190), (1, 1), (30, 31), (2, 64)],
    "more-queries-than-keys": [(120, 50), (260, 131)],
}
INSIDE: dict[str, Mask] = {
    "causal": Causal(),
    "full": Full(),
    "short-window": Window(20),
    "one-token-window": Window(1),
    "long-window": Window(1000),
}
SINGLE = "odd", "single-tokens", "steps-after-a-cache"
TILED = "long-ones", "after-a-cache"  # enough queries in every run for the Triton kernel's tiles
HEADS = [(9, 3, 128), (32, 8, 64), (4, 4, 96)]


def refused(kernel: str, pack: str, inside: str) -> bool:
    """What is left to other kernels."""
    window = isinstance(INSIDE[inside], Window)
    if kernel == "cudnn":
        return window or pack in SINGLE
    return kernel == "triton_window" and (not window or pack not in TILED)


CASES = [
    (kernel, pack, inside)
    for kernel in ("cuda_flash", "flash_attn", "cudnn", "triton_window")
    for pack in PACKS
    for inside in INSIDE
    if not refused(kernel, pack, inside)
]


@pytest.mark.parametrize("dtype", TOLERANCE, ids=lambda d: str(d).removeprefix("torch."))
@pytest.mark.parametrize("heads", HEADS, ids=["9-3-d128", "32-8-d64", "4-4-d96"])
@pytest.mark.parametrize(("kernel", "pack", "inside"), CASES, ids=map("-".join, CASES))
def test_a_kernel(kernel: str, pack: str, inside: str, heads: tuple[int, int, int], dtype: Any) -> None:
    """Values and log-sum-exp, then gradients beside another branch. It skips only flash_attn, where it is missing."""
    p = packed(PACKS[pack], *heads, dtype=dtype, device="cuda")
    branch = branch_of(p, PACKS[pack], INSIDE[inside])
    reason = KERNELS[kernel].unsupported_reason(call_of(branch), p.q, p.k)
    assert reason is None or (kernel == "flash_attn" and "flash-attn" in reason), reason
    check(KERNELS[kernel], branch, p, dtype)


@pytest.mark.parametrize("inside", INSIDE)
@pytest.mark.parametrize("pack", PACKS)
@pytest.mark.parametrize("kernel", ["auto", "blocked"])
def test_attend(kernel: str, pack: str, inside: str) -> None:
    p = packed(PACKS[pack], 6, 2, 64, dtype=torch.bfloat16, device="cuda")
    plain(kernel, p, [branch_of(p, PACKS[pack], INSIDE[inside])])


def test_segments_are_found_and_flash_attention_takes_them() -> None:
    p = packed(PACKS["odd"], 6, 2, 64, dtype=torch.bfloat16, device="cuda")
    found = segments_of(p.q_pos, p.k_pos)
    assert found is not None
    assert found.cu_q_N.is_cuda
    branch = Branch(p.q, p.k, p.v, Positions(p.q_pos, p.k_pos, segments=found), Packed())
    plain("cuda_flash", p, [branch])


def test_zigzag_rows() -> None:
    """The head and the tail of each document, as a rank of sequence parallelism holds them."""
    p = packed([(200, 200), (90, 90)], 6, 2, 64, dtype=torch.bfloat16, device="cuda")
    p.q_pos = p.k_pos = torch.where(p.k_pos % 2**32 % 97 < 50, p.k_pos, p.k_pos + 1000).sort(1).values
    found = segments_of(p.q_pos, p.k_pos)
    assert found is not None
    branch = Branch(p.q, p.k, p.v, Positions(p.q_pos, p.k_pos, segments=found), Packed())
    for kernel in ("cuda_flash", "cudnn"):
        plain(kernel, p, [branch])


@pytest.mark.parametrize("kernel", ["cuda_flash", "cudnn"])
def test_gradients_are_added_into_fp32_buffers(kernel: str) -> None:
    p = packed(PACKS["after-a-cache"], 6, 2, 64, dtype=torch.bfloat16, device="cuda")
    branch = branch_of(p, PACKS["after-a-cache"], Causal())
    call = call_of(branch)
    out, lse = KERNELS[kernel].forward(call, p.q, p.k, p.v)
    into = [torch.ones_like(x, dtype=torch.float32) for x in (p.q, p.k, p.v)]
    found = KERNELS[kernel].backward(call, p.grad, p.q, p.k, p.v, out, lse, into=into)
    assert [x is y for x, y in zip(found, into, strict=True)] == [True] * 3
    for x in (p.q, p.k, p.v):
        x.requires_grad_()
    for mine, true in zip(into, gradients(truth([branch], SCALE)[0], p), strict=True):
        assert off(mine - 1, true) <= TOLERANCE[torch.bfloat16][1]


@pytest.fixture
def waiting_is_an_error() -> Iterator[Any]:
    """Turned on by a call, off at the end."""
    yield lambda: torch.cuda.set_sync_debug_mode("error")
    torch.cuda.set_sync_debug_mode("default")


@pytest.mark.parametrize("pack", ["long-ones", "after-a-cache"])
@pytest.mark.parametrize("inside", ["causal", "full", "short-window"])
@pytest.mark.parametrize("kernel", ["auto", "cuda_flash", "flash_attn", "cudnn", "triton_window"])
def test_the_host_never_waits(kernel: str, inside: str, pack: str, waiting_is_an_error: Any) -> None:
    """Forward and backward, after a first call that compiles and checks."""
    if refused(kernel, pack, inside):
        pytest.skip("it takes no such documents")
    p = packed(PACKS[pack], 6, 2, 64, dtype=torch.bfloat16, device="cuda")
    for x in (p.q, p.k, p.v):
        x.requires_grad_()
    branch = branch_of(p, PACKS[pack], INSIDE[inside])
    if kernel == "flash_attn" and (reason := KERNELS[kernel].unsupported_reason(call_of(branch), p.q, p.k)):
        pytest.skip(reason)

    def run() -> list[torch.Tensor]:
        return gradients(attend([branch], scale=SCALE, kernel=kernel), p)

    first = run()
    torch.cuda.synchronize()
    waiting_is_an_error()
    second = run()
    torch.cuda.set_sync_debug_mode("default")
    for before, after in zip(first, second, strict=True):
        assert off(after, before.double()) <= 1e-2  # flash attention sums gradients of queries in any order


def test_waiting_would_be_seen(waiting_is_an_error: Any) -> None:
    """Rows of which nothing is known are counted, for which the host waits."""
    lengths = PACKS["long-ones"]
    p = packed(lengths, 6, 2, 64, dtype=torch.bfloat16, device="cuda")
    kernel, unknown = KERNELS["cuda_flash"], Positions(p.q_pos, p.k_pos, same_rows=True)
    torch.cuda.synchronize()
    waiting_is_an_error()
    with pytest.raises(RuntimeError, match="synchroniz"):
        kernel.forward(Call(unknown, Causal(), SCALE), p.q, p.k, p.v)
    kernel.forward(Call(known(p, lengths), Packed(), SCALE), p.q, p.k, p.v)
