"""A learned logit per head in the softmax's denominator, against the softmax with one key more whose value is 0."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor

from hf_longctx.ops.attend import attend
from hf_longctx.ops.kernels import FUSED, KERNELS
from hf_longctx.ops.kernels.fused import FusedKernel
from hf_longctx.ops.masks import BeyondWindow, Causal, Window
from tests.ops.cases import SHAPES, gradients, problem, selected, truth

SINK = torch.tensor([1.5, -2.0, 0.0, 30.0])  # one that is larger than all scores


@pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16], ids=str)
@pytest.mark.parametrize("kernel", ["reference", "blocked", "auto"])
@pytest.mark.parametrize("shape", SHAPES)
def test_values_and_gradients(shape: str, kernel: str, dtype: Any) -> None:
    p = problem(shape, dtype=dtype)
    sink = SINK.clone().to(dtype).requires_grad_()
    for x in (p.q, p.k, p.v):
        x.requires_grad_()
    branches = [p.branch(Window(5)), p.branch(BeyondWindow(5))]
    out = attend(branches, scale=0.4, kernel=kernel, sink_H=sink)
    true = truth(branches, 0.4, sink)[0]
    tolerance = 1e-12 if dtype == torch.float64 else 3e-2
    torch.testing.assert_close(out.double(), true, rtol=tolerance, atol=tolerance)
    grads = zip(
        [*gradients(out, p), *torch.autograd.grad(out, sink, p.grad)],
        [*gradients(true, p), *torch.autograd.grad(true, sink, p.grad.double())],
        strict=True,
    )
    for mine, other in grads:
        assert mine.dtype == dtype
        assert (mine.double() - other.double()).norm() <= tolerance * other.double().norm().clamp(min=1e-6)


def test_one_that_is_very_low_changes_nothing() -> None:
    p = problem("left-padded")
    low = torch.full((4,), -1e9)
    torch.testing.assert_close(
        attend([p.branch(Causal())], scale=0.4, sink_H=low), attend([p.branch(Causal())], scale=0.4)
    )


def test_after_chosen_keys() -> None:
    p, chosen = selected("prefill", dtype=torch.float64)
    out = attend([p.branch(chosen)], scale=0.4, sink_H=SINK)
    torch.testing.assert_close(out, truth([p.branch(chosen)], 0.4, SINK)[0])


class EverythingAtOnce(FusedKernel):
    """All branches by the definition."""

    name = "everything"
    masks = (Window, BeyondWindow)
    called = 0

    def unsupported_reason(self, branches: list[Any], softcap: float | None = None) -> str | None:
        return None

    def forward(
        self, branches: list[Any], scale: float, softcap: float | None = None, sink_H: Tensor | None = None
    ) -> tuple[Tensor, Tensor]:
        self.called += 1
        return truth(branches, scale, sink_H, softcap)


def test_after_a_fused_kernel(monkeypatch: pytest.MonkeyPatch) -> None:
    """A gradient of the sink is asked of the others."""
    fused = EverythingAtOnce()
    monkeypatch.setattr("hf_longctx.ops.attend.FUSED", [fused])
    p = problem("one-token", dtype=torch.float64)
    branches = [p.branch(Window(5)), p.branch(BeyondWindow(5))]
    true = truth(branches, 0.4, SINK)[0]
    torch.testing.assert_close(attend(branches, scale=0.4, sink_H=SINK), true)
    assert fused.called == 1
    learned = SINK.clone().requires_grad_()
    torch.testing.assert_close(attend(branches, scale=0.4, sink_H=learned), true)
    assert fused.called == 1
    attend(branches, scale=0.4, kernel="reference")
    assert fused.called == 1
    attend(branches, scale=0.4)
    assert fused.called == 2
    capped = attend(branches, scale=0.4, sink_H=SINK, softcap=1.3)
    torch.testing.assert_close(capped, truth(branches, 0.4, SINK, 1.3)[0])
    assert fused.called == 3


def test_fused_kernels_are_no_kernels_of_one_branch() -> None:
    assert not {fused.name for fused in FUSED} & set(KERNELS)
