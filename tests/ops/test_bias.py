"""Biases by distance against every pair's own, in float64: values and gradients, of slopes and tables too."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor
from transformers.models.t5.modeling_t5 import T5Attention

from hf_longctx.ops.attend import attend
from hf_longctx.ops.bias import Bias, DistanceBuckets, DistanceSlopes
from hf_longctx.ops.kernels import FUSED, KERNELS, blocked
from hf_longctx.ops.kernels.base import takes
from hf_longctx.ops.masks import BeyondWindow, Causal, Full, Window
from tests.ops.cases import Problem, gradients, problem, truth

SHAPES = ("prefill", "one-token", "window-cache", "left-padded", "padded-in-the-middle", "a-row-of-padding")
TOLERANCE: dict[Any, float] = {torch.float64: 1e-12, torch.float32: 2e-5}


def t5(distance: Tensor) -> Tensor:
    return T5Attention._relative_position_bucket(-distance, bidirectional=True, num_buckets=12, max_distance=20)


def relative(distance: Tensor) -> Tensor:
    """A bucket for each distance, the last one for all that are further."""
    return distance.clamp(0, 30)


def biases(heads: int, dtype: Any) -> dict[str, Bias]:
    generator = torch.Generator().manual_seed(7)

    def random(*shape: int) -> Tensor:
        return torch.randn(shape, generator=generator, dtype=torch.float64).to(dtype).requires_grad_()

    return {
        "slopes": DistanceSlopes(random(heads).detach().abs_().requires_grad_()),
        "t5": DistanceBuckets(random(heads, 12), t5),
        "relative": DistanceBuckets(random(heads, 31), relative),
    }


def check(p: Problem, bias: Bias, kernel: str, dtype: Any) -> None:
    """A window and the far rest, both biased; values and every gradient."""
    for x in (p.q, p.k, p.v):
        x.requires_grad_()
    branches = [p.branch(Window(6), bias=bias), p.branch(BeyondWindow(6), bias=bias)]
    out, true = attend(branches, scale=0.4, kernel=kernel), truth(branches, 0.4)[0]
    tolerance = {"rtol": TOLERANCE[dtype], "atol": TOLERANCE[dtype]}
    torch.testing.assert_close(out.double(), true, **tolerance)
    for mine, other in zip(gradients(out, p), gradients(true, p), strict=True):
        torch.testing.assert_close(mine.double(), other.double(), **tolerance)
    mine, other = (torch.autograd.grad(x, bias.weights, p.grad.to(x.dtype))[0] for x in (out, true))
    assert mine.dtype == bias.weights.dtype
    torch.testing.assert_close(mine.double(), other.double(), rtol=1e-4, atol=TOLERANCE[dtype] * 100)


@pytest.mark.parametrize("dtype", TOLERANCE, ids=str)
@pytest.mark.parametrize("kernel", ["reference", "blocked", "auto"])
@pytest.mark.parametrize("kind", ["slopes", "t5", "relative"])
@pytest.mark.parametrize("shape", SHAPES)
def test_values_and_gradients(shape: str, kind: str, kernel: str, dtype: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(blocked, "BLOCK", 10)
    check(problem(shape, 4, 2, dtype=dtype), biases(4, dtype)[kind], kernel, dtype)


@pytest.mark.parametrize("heads", [(4, 4), (3, 1), (6, 2)], ids=["mha", "mqa", "gqa"])
@pytest.mark.parametrize("kind", ["slopes", "t5"])
def test_groups_of_heads(kind: str, heads: tuple[int, int]) -> None:
    check(
        problem("left-padded", *heads, dtype=torch.float64),
        biases(heads[0], torch.float64)[kind],
        "auto",
        torch.float64,
    )


def test_a_bias_on_one_branch_of_two_in_bf16() -> None:
    p = problem("prefill", dtype=torch.bfloat16)
    bias = biases(4, torch.float32)["slopes"]
    branches = [p.branch(Window(6), bias=bias), p.branch(BeyondWindow(6))]
    out = attend(branches, scale=0.4)
    torch.testing.assert_close(out.double(), truth(branches, 0.4)[0], rtol=3e-2, atol=3e-2)
    assert torch.autograd.grad(out.float().sum(), bias.weights)[0].dtype == torch.float32


def test_slopes_without_gradients_get_none() -> None:
    p = problem("prefill")
    p.q.requires_grad_()
    slopes = DistanceSlopes(torch.tensor([0.5, 0.25, 0.125, 0.0625]))
    out = attend([p.branch(Causal(), bias=slopes)], scale=0.4)
    torch.autograd.grad(out.sum(), p.q)
    assert slopes.weights.grad is None


def test_biases_of_zero_change_nothing() -> None:
    p = problem("prefill")
    plain = attend([p.branch(Full())], scale=0.4, kernel="reference")
    zeros = DistanceBuckets(torch.zeros(4, 31), relative)
    assert torch.equal(attend([p.branch(Full(), bias=zeros)], scale=0.4, kernel="reference"), plain)


def test_other_kernels_refuse_biases_by_name() -> None:
    p = problem("prefill")
    bias = biases(4, torch.float32)["slopes"]
    assert [name for name, kernel in KERNELS.items() if takes(kernel.biases, bias)] == ["blocked", "reference"]
    assert not any(fused.biases for fused in FUSED)
    with pytest.raises(ValueError, match=r"selected: it has no Causal mask.* blocked: can; reference: can"):
        attend([p.branch(Causal(), bias=bias)], scale=0.4, kernel="flex")
    other = attend([p.branch(Causal(), bias=bias)], scale=0.4, kernel="reference", strict=False)
    assert other.isfinite().all()
