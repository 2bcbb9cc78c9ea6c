"""Every kernel that runs on a CPU against the pair-by-pair definition: values, log-sum-exp, gradients, merging."""

from __future__ import annotations

import math
from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import Tensor

from hf_longctx.ops.attend import attend
from hf_longctx.ops.branch import Branch
from hf_longctx.ops.kernels import KERNELS, Call, choose
from hf_longctx.ops.masks import BeyondWindow, Causal, Full, TopKeys, Window
from hf_longctx.ops.merge import merge
from hf_longctx.ops.positions import Positions
from tests.ops.cases import MASKS, SHAPES, Problem, gradients, problem, selected, truth

CPU = ("reference", "blocked")
SCALE = 0.4
# sums of at most 50 terms of O(1): fp32 rounds to a few 1e-7, fp64 to 1e-15; bf16 keeps 8 bits of inputs and outputs
TOLERANCE: dict[Any, float] = {torch.float32: 1e-5, torch.float64: 1e-12, torch.bfloat16: 3e-2}
# CPU flash in bf16 sums weights that it has rounded
LSE_TOLERANCE = {d: {"rtol": t, "atol": t} for d, t in TOLERANCE.items()} | {torch.bfloat16: {"rtol": 0, "atol": 2e-4}}


def call_of(branch: Branch) -> Call:
    return Call(branch.positions, branch.mask, SCALE, branch.bias)


def near(actual: Tensor, expected: Tensor, dtype: Any) -> None:
    tolerance = TOLERANCE[dtype]
    torch.testing.assert_close(actual.double(), expected.double(), rtol=tolerance, atol=tolerance)


@pytest.mark.parametrize("dtype", TOLERANCE, ids=lambda d: str(d).removeprefix("torch."))
@pytest.mark.parametrize("mask", MASKS)
@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("kernel", CPU)
def test_a_kernel_gives_values_and_lse(kernel: str, shape: str, mask: str, dtype: Any) -> None:
    p = problem(shape, dtype=dtype)
    branch = p.branch(MASKS[mask])
    out, lse = KERNELS[kernel].forward(call_of(branch), p.q, p.k, p.v)
    true_out, true_lse = truth([branch], SCALE)
    near(out, true_out, dtype)
    torch.testing.assert_close(lse.double(), true_lse, **LSE_TOLERANCE[dtype])
    assert lse.dtype == torch.promote_types(dtype, torch.float32)
    empty = true_lse.transpose(1, 2) == -math.inf
    assert not out[empty].any(), "rows without keys are zero"


@pytest.mark.parametrize("dtype", TOLERANCE, ids=lambda d: str(d).removeprefix("torch."))
@pytest.mark.parametrize("heads", [(4, 4), (6, 2), (3, 1)], ids=["mha", "gqa", "mqa"])
@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("kernel", [*CPU, "auto"])
def test_gradients_of_a_window_and_the_far_rest(kernel: str, shape: str, heads: tuple[int, int], dtype: Any) -> None:
    p = problem(shape, *heads, dtype=dtype)
    for x in (p.q, p.k, p.v):
        x.requires_grad_()
    branches = [p.branch(Window(5)), p.branch(BeyondWindow(5))]
    check_values_and_gradients(branches, p, kernel, dtype)


@pytest.mark.parametrize("dtype", TOLERANCE, ids=lambda d: str(d).removeprefix("torch."))
@pytest.mark.parametrize("shape", SHAPES)
def test_selected_keys_give_values_and_gradients(shape: str, dtype: Any) -> None:
    p, chosen = selected(shape, dtype=dtype)
    for x in (p.q, p.k, p.v):
        x.requires_grad_()
    check_values_and_gradients([p.branch(chosen)], p, "auto", dtype)


@pytest.mark.parametrize("kernel", ["auto", "reference"])
def test_neighbouring_heads_share_selected_keys(kernel: str) -> None:
    p, chosen = selected("left-padded", dtype=torch.float64)
    for x in (p.q, p.k, p.v):
        x.requires_grad_()
    shared = TopKeys(chosen.index_BHLK[:, ::2].int(), shared=2)
    check_values_and_gradients([p.branch(shared)], p, kernel, torch.float64)
    each = TopKeys(chosen.index_BHLK[:, [0, 0, 2, 2]])
    pairs = [mask.pairs(p.q_pos, p.k_pos) for mask in (shared, each)]
    assert torch.equal(*pairs)


def test_selected_keys_are_gathered_for_some_queries_at_a_time(monkeypatch: pytest.MonkeyPatch) -> None:
    p, chosen = selected("prefill", dtype=torch.float64)
    for x in (p.q, p.k, p.v):
        x.requires_grad_()
    each = p.q.shape[0] * p.q.shape[1] * chosen.index_BHLK.shape[-1] * p.q.shape[-1]
    for at_once in (1, 5 * each):
        monkeypatch.setattr("hf_longctx.ops.kernels.selected.GATHERED", at_once)
        check_values_and_gradients([p.branch(chosen)], p, "selected", torch.float64)


@pytest.mark.parametrize("kernel", CPU)
def test_three_branches_with_a_selection_give_gradients(kernel: str) -> None:
    p = problem("prefill", dtype=torch.float64)
    for x in (p.q, p.k, p.v):
        x.requires_grad_()
    index = torch.full((2, 4, 37, 2), -1)
    index[:, :, 20:] = torch.tensor([4, 9])  # at distance 11 and more of queries 20...36
    positions = Positions(p.q_pos, p.k_pos[:, :3], padded=False)
    first = Branch(p.q, p.k[:, :, :3], p.v[:, :, :3], positions, BeyondWindow(6))
    branches = [p.branch(Window(6)), first, p.branch(TopKeys(index))]
    check_values_and_gradients(branches, p, kernel, torch.float64)


def check_values_and_gradients(branches: list[Branch], p: Problem, kernel: str, dtype: Any) -> None:
    out = attend(branches, scale=SCALE, kernel=kernel)
    assert out.dtype == dtype
    true_out = truth(branches, SCALE)[0]
    near(out, true_out, dtype)
    for mine, true in zip(gradients(out, p), gradients(true_out, p), strict=True):
        assert mine.isfinite().all()
        if dtype == torch.bfloat16:  # sums of rounded terms: relative to the whole tensor
            assert (mine.double() - true.double()).norm() <= TOLERANCE[dtype] * true.double().norm().clamp(min=1e-9)
        else:
            near(mine, true, dtype)


@pytest.mark.parametrize("kernel", ["reference", "selected"])
def test_gradcheck(kernel: str) -> None:
    p, chosen = selected("left-padded", dtype=torch.float64, heads=2, groups=1, dim=4)
    positions = Positions(p.q_pos, p.k_pos)
    mask: Any = chosen if kernel == "selected" else Window(4)

    def run(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        branches = [Branch(q, k, v, positions, mask)]
        if kernel == "reference":
            branches.append(Branch(q, k, v, positions, BeyondWindow(4)))
        return attend(branches, scale=SCALE, kernel=kernel)

    inputs = [x.requires_grad_() for x in (p.q, p.k, p.v)]
    assert torch.autograd.gradcheck(run, inputs, fast_mode=True)


def test_a_second_derivative_is_an_error_and_not_a_wrong_number() -> None:
    p = problem("prefill")
    p.q.requires_grad_()
    (grad,) = torch.autograd.grad(attend([p.branch(Causal())], scale=SCALE).square().sum(), p.q, create_graph=True)
    with pytest.raises(RuntimeError, match="once_differentiable"):
        grad.sum().backward()


@pytest.mark.parametrize("kernel", [*CPU, "auto"])
def test_no_keys_and_no_queries_give_zeros(kernel: str) -> None:
    p = problem("prefill")
    nothing = Branch(p.q, p.k[:, :, :0], p.v[:, :, :0], Positions(p.q_pos, p.k_pos[:, :0]), Causal())
    out = attend([nothing], scale=SCALE, kernel=kernel)
    assert out.shape == (2, 37, 4, 8)
    assert not out.any()
    both = attend([nothing, p.branch(Causal())], scale=SCALE, kernel=kernel)
    torch.testing.assert_close(both, attend([p.branch(Causal())], scale=SCALE, kernel=kernel), rtol=0, atol=0)
    no_rows = Branch(p.q[:, :, :0], p.k, p.v, Positions(p.q_pos[:, :0], p.k_pos), Causal())
    assert attend([no_rows], scale=SCALE, kernel=kernel).shape == (2, 0, 4, 8)


def test_blocks_of_queries_equal_one_matrix() -> None:
    torch.manual_seed(1)
    L = 1100  # three blocks of the blocked kernel, the last one odd
    q, k, v = torch.randn(1, 2, L, 8, requires_grad=True), *torch.randn(2, 1, 1, L, 8).unbind()
    k.requires_grad_()
    v.requires_grad_()
    pos = torch.arange(L)[None]
    outs = []
    for kernel in CPU:
        branches = [Branch(q, k, v, Positions(pos, pos), mask) for mask in (Window(300), BeyondWindow(300))]
        out = attend(branches, scale=0.3, kernel=kernel)
        outs.append([out, *torch.autograd.grad(out.square().sum(), [q, k, v])])
    for mine, other in zip(*outs, strict=True):
        torch.testing.assert_close(mine, other, rtol=1e-4, atol=1e-4)  # gradients are sums of 1100 terms


def test_merge_of_empty_rows_is_empty_and_not_nan() -> None:
    empty, none = torch.zeros(1, 2, 1, 3), torch.full((1, 1, 2), -math.inf)
    some, some_lse = torch.ones(1, 2, 1, 3), torch.tensor([[[2.0, -math.inf]]])
    out, lse = merge(empty, none, some * torch.tensor([1.0, 0.0])[None, :, None, None], some_lse)
    assert out[0, 0].eq(1).all()
    assert out[0, 1].eq(0).all()
    assert lse.tolist() == [[[2.0, -math.inf]]]


def test_huge_scores_do_not_overflow() -> None:
    p = problem("prefill")
    p.q *= 1e4
    branches = [p.branch(Window(5)), p.branch(BeyondWindow(5))]
    for kernel in CPU:
        near(attend(branches, scale=SCALE, kernel=kernel), truth(branches, SCALE)[0], torch.float32)


def test_choose_names_what_is_wrong() -> None:
    p = problem("prefill")
    call = call_of(p.branch(Full()))
    with pytest.raises(ValueError, match="kernel='fast': expected auto or one of"):
        choose(call, p.q, p.k, "fast")
    with pytest.raises(ValueError, match="cannot do this attention: tensors are not on a CUDA device"):
        choose(call, p.q, p.k, "cuda_flash")
    assert choose(call, p.q, p.k).name == "blocked"
    with pytest.raises(ValueError, match="All kernels: selected: it has no Full mask; triton_few: tensors"):
        choose(call, p.q, p.k, "selected")
    nothing: Any = replace(call, mask=None)
    with pytest.raises(ValueError, match=r"no kernel can do this.*blocked: it has no NoneType mask; reference"):
        choose(nothing, p.q, p.k)


def test_one_row_of_scores_needs_no_blocks_unless_they_are_asked_for() -> None:
    p = problem("one-token")
    call = call_of(p.branch(Causal()))
    assert choose(call, p.q, p.k).name == "reference"
    assert choose(call, p.q, p.k, "blocked").name == "blocked"
    assert choose(call, p.q.double(), p.k.double()).name == "blocked"


@pytest.mark.parametrize("name", KERNELS)
def test_every_kernel_says_what_it_is_for(name: str) -> None:
    assert KERNELS[name].name == name
    assert KERNELS[name].summary
