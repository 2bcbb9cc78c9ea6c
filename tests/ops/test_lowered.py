"""Branches whose scores are lowered by something of each query, against the definition."""

from __future__ import annotations

import dataclasses
from typing import Any

import pytest
import torch

from hf_longctx.ops.attend import attend, log_sum_exp
from hf_longctx.ops.masks import BeyondWindow, TopKeys, Window
from tests.ops.cases import SHAPES, gradients, problem, selected, truth

SINK = torch.tensor([1.5, -2.0, 0.0, 3.0])


@pytest.mark.parametrize("with_sink", [False, True])
@pytest.mark.parametrize("softcap", [None, 2.0])
@pytest.mark.parametrize("shape", SHAPES)
def test_values_and_gradients(shape: str, softcap: float | None, with_sink: bool) -> None:
    p, sink = problem(shape, dtype=torch.float64), SINK.double() if with_sink else None
    for x in (p.q, p.k, p.v):
        x.requires_grad_()
    lowered = torch.rand(p.q_pos.shape, generator=torch.Generator().manual_seed(1), dtype=torch.float64) * 5
    window, first = p.branch(Window(5)), p.branch(BeyondWindow(5))
    for branches in (
        [window, dataclasses.replace(first, lowered_BL=lowered)],
        [dataclasses.replace(window, lowered_BL=-lowered), first],
        [dataclasses.replace(first, lowered_BL=lowered)],
    ):
        out = attend(branches, scale=0.4, sink_H=sink, softcap=softcap)
        true = truth(branches, 0.4, sink, softcap)[0]
        torch.testing.assert_close(out, true, rtol=1e-12, atol=1e-12)
        for mine, other in zip(gradients(out, p), gradients(true, p), strict=True):
            torch.testing.assert_close(mine, other, rtol=1e-10, atol=1e-12)


def test_chosen_keys_and_their_log_sum_exp() -> None:
    p, chosen = selected("prefill", dtype=torch.float64)
    assert isinstance(chosen, TopKeys)
    lowered: Any = torch.arange(p.q_pos.shape[1], dtype=torch.float64).expand_as(p.q_pos)
    branch = p.branch(chosen, lowered_BL=lowered)
    torch.testing.assert_close(log_sum_exp(branch, scale=0.4, kernel="auto", strict=False), truth([branch], 0.4)[1])
    out = attend([p.branch(Window(3)), branch], scale=0.4)
    torch.testing.assert_close(out, truth([p.branch(Window(3)), branch], 0.4)[0])
