"""Gradients of keys that several branches share are summed in fp32 and rounded once."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from hf_longctx.ops.attend import attend
from hf_longctx.ops.kernels import KERNELS, Call, blocked
from hf_longctx.ops.masks import Chunk
from hf_longctx.ops.widths import widened
from tests.ops.cases import Problem, problem

MASKS = [Chunk(5, back) for back in range(8)]  # many branches: rounding after each would show


def shared(dtype: Any) -> Problem:
    p = problem("prefill", dtype=dtype)
    for x in (p.q, p.k, p.v):
        x.requires_grad_()
    return p


def whole(p: Problem, kernel: str) -> tuple[list[Call], torch.Tensor, torch.Tensor]:
    """The calls, and the output and log-sum-exp of their union."""
    calls = [Call(branch.positions, branch.mask, 0.4) for branch in map(p.branch, MASKS)]
    out, lse = KERNELS[kernel].forward(calls[0], p.q, p.k, p.v)
    for call in calls[1:]:
        out, lse = KERNELS[kernel].merge_(call, p.q, p.k, p.v, out, lse)
    return calls, out, lse


@pytest.mark.parametrize("kernel", ["reference", "blocked"])
def test_bf16_gradients_are_the_fp32_sum_rounded_once(kernel: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(blocked, "BLOCK", 10)
    p = shared(torch.bfloat16)
    out = attend([p.branch(mask) for mask in MASKS], scale=0.4, kernel=kernel)
    got = torch.autograd.grad(out, [p.q, p.k, p.v], p.grad)
    with torch.no_grad():
        calls, merged, lse = whole(p, kernel)
        sums = [torch.zeros_like(x, dtype=torch.float32) for x in (p.q, p.k, p.v)]
        for call in calls:
            for total, grad in zip(
                sums, KERNELS[kernel].gradients(call, p.grad, p.q, p.k, p.v, merged, lse), strict=True
            ):
                assert grad.dtype == torch.float32
                total += grad
    for mine, total in zip(got, sums, strict=True):
        assert mine.dtype == torch.bfloat16
        assert torch.equal(mine, total.bfloat16())


def test_values_of_another_head_dim_are_summed_in_fp32_too(monkeypatch: pytest.MonkeyPatch) -> None:
    """Widened once for all branches: gradients are those of keys that have the wider values' dim already."""
    monkeypatch.setattr(blocked, "BLOCK", 10)
    p = problem("prefill", dtype=torch.bfloat16, v_dim=16)
    grads = []
    for q, k in ((p.q, p.k), (widened(p.q, 16), widened(p.k, 16))):
        p.q, p.k = (x.detach().requires_grad_() for x in (q, k))
        out = attend([p.branch(mask) for mask in MASKS], scale=0.4, kernel="blocked")
        grads.append(torch.autograd.grad(out, [p.q, p.k], p.grad))
    for narrow, wide in zip(*grads, strict=True):
        assert torch.equal(narrow, wide[..., :8])


@pytest.mark.parametrize("kernel", ["reference", "blocked", "selected"])
def test_backward_adds_into_buffers(kernel: str) -> None:
    from tests.ops.cases import selected

    p, chosen = selected("prefill", dtype=torch.bfloat16)
    branch = p.branch(chosen)
    call = Call(branch.positions, branch.mask, 0.4)
    out, lse = KERNELS[kernel].forward(call, p.q, p.k, p.v)
    plain = KERNELS[kernel].backward(call, p.grad, p.q, p.k, p.v, out, lse)
    assert [x.dtype for x in plain] == [torch.bfloat16] * 3
    dk = torch.ones_like(p.k, dtype=torch.float32)
    for _ in range(2):
        found = KERNELS[kernel].backward(call, p.grad, p.q, p.k, p.v, out, lse, into=(None, dk, None))
    assert found[1] is dk
    assert torch.equal(found[0], plain[0])
    assert torch.equal(found[2], plain[2])
    torch.testing.assert_close((dk - 1) / 2, plain[1].float(), rtol=1e-2, atol=1e-2)


def test_one_tensor_as_keys_and_values_and_in_two_branches() -> None:
    """Each of its places gives its gradient a part."""
    p = shared(torch.float64)
    p.v = p.k
    out = attend([p.branch(mask) for mask in MASKS], scale=0.4)
    (mine,) = torch.autograd.grad(out, p.k, p.grad)
    k, v = (p.k.detach().clone().requires_grad_() for _ in range(2))
    p.k, p.v = k, v
    apart = torch.autograd.grad(attend([p.branch(mask) for mask in MASKS], scale=0.4), [k, v], p.grad)
    torch.testing.assert_close(mine, apart[0] + apart[1])
