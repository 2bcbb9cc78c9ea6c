"""Every kernel that takes packed documents against the pair-by-pair definition: values, log-sum-exp, gradients."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch

from hf_longctx.ops.attend import attend
from hf_longctx.ops.branch import Branch
from hf_longctx.ops.kernels import KERNELS, Call, runs
from hf_longctx.ops.masks import DOCUMENT, Causal, Full, Packed, Window
from hf_longctx.ops.positions import Positions
from hf_longctx.ops.segments import segments, segments_of
from hf_longctx.ops.softmax import Part, softmax_of
from tests.ops.cases import gradients, truth
from tests.ops.packs import INSIDE, PACKS, PlainOps, branch_of, known, packed, plain_ops

SCALE = 0.4
# relative to the norm of the whole tensor: fp32 sums of at most 64 terms; bf16 keeps 8 bits of inputs and of outputs
TOLERANCE = {torch.float32: 1e-5, torch.float64: 1e-12, torch.bfloat16: 1.6e-2}
NAMES = "reference", "blocked", "cuda_flash", "cudnn"
SINGLE = "odd", "single-tokens", "steps-after-a-cache"  # with runs of one query or key, which cuDNN leaves to others
CASES = [(name, pack, inside) for name in NAMES[:3] for pack in PACKS for inside in INSIDE]
CASES += [("cudnn", pack, inside) for pack in PACKS if pack not in SINGLE for inside in ("causal", "full")]


def off(mine: torch.Tensor, true: torch.Tensor) -> float:
    assert mine.isfinite().all()
    # where each query sees one key alone, gradients of queries are 0
    return float((mine.double() - true.double()).detach().norm() / true.detach().double().norm().clamp(min=1.0))


@pytest.fixture
def ops(monkeypatch: pytest.MonkeyPatch) -> PlainOps:
    return plain_ops(monkeypatch)


@pytest.mark.parametrize("dtype", TOLERANCE, ids=lambda d: str(d).removeprefix("torch."))
@pytest.mark.parametrize("heads", [(9, 3), (32, 8)], ids=["9-3", "32-8"])
@pytest.mark.parametrize(("name", "pack", "inside"), CASES, ids=map("-".join, CASES))
def test_a_kernel(name: str, pack: str, inside: str, heads: tuple[int, int], dtype: Any, ops: PlainOps) -> None:
    """Alone, then merged with other keys, whose log-sum-exp its backward must take."""
    kernel, p = KERNELS[name], packed(PACKS[pack], *heads, dtype=dtype)
    branch = branch_of(p, PACKS[pack], INSIDE[inside])
    call = Call(branch.positions, branch.mask, SCALE)
    tolerance = TOLERANCE[dtype]
    if name in ("cuda_flash", "cudnn"):
        assert kernel.limits(call, p.q, p.k) is None
    out, lse = kernel.forward(call, p.q, p.k, p.v)
    true_out, true_lse = truth([branch], SCALE)
    assert off(out, true_out) <= tolerance
    assert not out[true_lse.transpose(1, 2) == -math.inf].any()
    assert lse.dtype == torch.promote_types(dtype, torch.float32)
    torch.testing.assert_close(lse.double(), true_lse, rtol=min(tolerance, 1e-4), atol=min(tolerance, 1e-4))

    for x in (p.q, p.k, p.v):
        x.requires_grad_()
    # the same documents' keys, reversed, as another part of the softmax
    other = Branch(p.q, p.k.flip(2), p.v.flip(2), Positions(p.q_pos, p.k_pos), Packed(Full()))
    qkv = [(b.q_BHLD, b.k_BGSD, b.v_BGSD) for b in (branch, other)]
    parts = [Part(kernel, call, *qkv[0]), Part(KERNELS["reference"], Call(other.positions, other.mask, SCALE), *qkv[1])]
    merged, true = softmax_of(parts), truth([branch, other], SCALE)[0]
    assert off(merged, true) <= tolerance
    for mine, theirs in zip(gradients(merged, p), gradients(true, p), strict=True):
        assert off(mine, theirs) <= tolerance
    assert (len(ops.calls) > 0) == (name in ("cuda_flash", "cudnn"))


class Answers:
    """A kernel that returns the same tensors again and again."""

    def __init__(self, q: torch.Tensor, k: torch.Tensor) -> None:
        self.results = q.transpose(1, 2).clone(), q[..., 0].clone()
        self.found = [q.clone(), k.clone(), k.clone()]

    def forward(self, *_: Any) -> tuple[torch.Tensor, torch.Tensor]:
        return self.results

    def gradients(self, *_: Any) -> list[torch.Tensor]:
        return self.found


@pytest.mark.parametrize(("lengths", "same"), [([(37, 37)], True), ([(20, 20), (17, 17)], False), ([(0, 0)], False)])
def test_what_a_kernel_finds_for_all_rows_is_not_copied(lengths: list[tuple[int, int]], same: bool) -> None:
    p = packed(lengths)
    call, kernel = Call(known(p, lengths), Packed(Causal()), SCALE), Answers(p.q, p.k)
    if len(lengths) > 1:
        kernel.results = kernel.results[0][:, :1], kernel.results[1][:, :, :1]
        kernel.found = [x[:, :, :1] for x in kernel.found]
    out, lse = runs.forward(kernel, call, p.q, p.k, p.v)  # type: ignore[arg-type]
    found = runs.gradients(kernel, call, (out, p.q, p.k, p.v, out, lse))  # type: ignore[arg-type]
    mine, theirs = (out, lse, *found), (*kernel.results, *kernel.found)
    assert all((x is y) == same for x, y in zip(mine, theirs, strict=True))


def test_zigzag_rows_are_a_causal_square(ops: PlainOps) -> None:
    """The head and the tail of a document: rising, not consecutive."""
    lengths = [(12, 12), (9, 9)]
    p = packed(lengths)
    jump = torch.cat([torch.arange(6), 30 + torch.arange(6), DOCUMENT + torch.arange(9)])[None]
    branch = Branch(p.q, p.k, p.v, Positions(jump, jump, segments=segments(lengths, "cpu")), Packed(Causal()))
    call = Call(branch.positions, branch.mask, SCALE)
    for name in ("cuda_flash", "cudnn"):
        assert KERNELS[name].limits(call, p.q, p.k) is None
        assert off(KERNELS[name].forward(call, p.q, p.k, p.v)[0], truth([branch], SCALE)[0]) <= 1e-5
    windowed = Call(branch.positions, Packed(Window(5)), SCALE)
    assert KERNELS["cuda_flash"].limits(windowed, p.q, p.k) == "rows are not consecutive positions in order"


def test_cudnn_takes_a_call_a_square_and_one_for_the_keys_before_it(ops: PlainOps) -> None:
    lengths = [(6, 6), (4, 10), (0, 3), (7, 5)]
    p = packed(lengths)
    call = Call(known(p, lengths), Packed(Causal()), SCALE)
    KERNELS["cudnn"].forward(call, p.q, p.k, p.v)
    assert ops.calls == ["cudnn"] * 4
    ops.calls.clear()
    KERNELS["cudnn"].forward(Call(known(p, lengths), Packed(Full()), SCALE), p.q, p.k, p.v)
    assert ops.calls == ["cudnn"] * 3


@pytest.mark.parametrize("name", NAMES)
def test_gradients_are_added_into_fp32_buffers(name: str, ops: PlainOps) -> None:
    lengths = [(6, 6), (4, 10), (7, 7)]
    p = packed(lengths, dtype=torch.bfloat16)
    call = Call(known(p, lengths), Packed(Causal()), SCALE)
    out, lse = KERNELS[name].forward(call, p.q, p.k, p.v)
    args = call, p.grad, p.q, p.k, p.v, out, lse
    plain = KERNELS[name].backward(*args)
    assert [x.dtype for x in plain] == [torch.bfloat16] * 3
    into = [torch.full_like(x, 1000.0, dtype=torch.float32) for x in (p.q, p.k, p.v)]
    found = KERNELS[name].backward(*args, into=into)
    for buffer, mine, grad in zip(into, found, KERNELS[name].gradients(*args), strict=True):
        assert mine is buffer
        # in bf16, 1000 is kept to 4: nothing of the gradient would be left
        torch.testing.assert_close(buffer, grad.float() + 1000, rtol=0, atol=2e-4)  # part by part, in another order


def test_the_ring_of_three_ranks_is_one_call_of_attend() -> None:
    """Each rank's keys are a branch; documents cross from one rank to the next."""
    p = packed([(20, 20), (1, 1), (30, 30)])
    for x in (p.q, p.k, p.v):
        x.requires_grad_()
    ranks = [torch.arange(rank, 51, 3) for rank in range(3)]
    branches = [
        Branch(p.q, p.k[:, :, i], p.v[:, :, i], Positions(p.q_pos, p.k_pos[:, i], padded=False), Packed())
        for i in ranks
    ]
    whole = [Branch(p.q, p.k, p.v, Positions(p.q_pos, p.k_pos, segments=segments_of(p.q_pos, p.k_pos)), Packed())]
    out, true = attend(branches, scale=SCALE), truth(whole, SCALE)[0]
    for mine in (out, attend(whole, scale=SCALE)):
        assert off(mine, true) <= 1e-5
    for mine, theirs in zip(gradients(out, p), gradients(true, p), strict=True):
        assert off(mine, theirs) <= 1e-5


def test_windows_of_documents_by_the_triton_kernel(ops: PlainOps, monkeypatch: pytest.MonkeyPatch) -> None:
    """A call for each document; flash's backward for all."""
    from hf_longctx.ops.kernels.reference import Reference

    asked = []

    def window(q: Any, k: Any, v: Any, size: int, scale: float, softcap: float | None) -> Any:
        asked.append((q.shape[2], k.shape[2], size))
        q_pos, k_pos = (torch.arange(x.shape[2])[None] - x.shape[2] + 1000 for x in (q, k))
        return Reference().forward(Call(Positions(q_pos, k_pos), Window(size), scale, None, softcap), q, k, v)

    fake = type("Fake", (), {"window_attention": staticmethod(window)})
    monkeypatch.setitem(__import__("sys").modules, "hf_longctx.ops.kernels.triton_window", fake)
    lengths = [(17, 17), (0, 5), (16, 40)]
    p = packed(lengths)
    branch = branch_of(p, lengths, Window(9))
    call = Call(branch.positions, branch.mask, SCALE)
    kernel = KERNELS["triton_window"]
    assert kernel.limits(call, p.q, p.k) is None
    for x in (p.q, p.k, p.v):
        x.requires_grad_()
    out, true = softmax_of([Part(kernel, call, p.q, p.k, p.v)]), truth([branch], SCALE)[0]
    assert asked == [(17, 17, 9), (16, 40, 9)]
    assert off(out, true) <= 1e-5
    for mine, theirs in zip(gradients(out, p), gradients(true, p), strict=True):
        assert off(mine, theirs) <= 1e-5
    assert ops.calls == ["flash_backward"]


def test_the_flash_attn_package_is_told_of_the_documents() -> None:
    from hf_longctx.ops.kernels.cuda_flash import varlen
    from hf_longctx.ops.kernels.flash_attn import _settings

    lengths = PACKS["after-a-cache"]
    p = packed(lengths)
    positions = known(p, lengths)
    expected = {"causal": (True, -1, -1), "full": (False, -1, -1), "short-window": (False, 2, 0)}
    for inside, told in expected.items():
        call = Call(positions, Packed(INSIDE[inside]), SCALE)
        settings = _settings(call, *varlen(call))
        assert settings["cu_seqlens_q"].tolist() == [0, 3, 10, 12]
        assert settings["cu_seqlens_k"].tolist() == [0, 20, 27, 32]
        assert (settings["max_seqlen_q"], settings["max_seqlen_k"]) == (7, 20)
        assert (settings["causal"], settings["window_size_left"], settings["window_size_right"]) == told
