"""Every GPU kernel against the pair-by-pair definition in float64: `pytest tests/gpu -m gpu` on one NVIDIA GPU."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from torch import Tensor

from hf_longctx.ops.attend import attend
from hf_longctx.ops.bias import DistanceBuckets, DistanceSlopes
from hf_longctx.ops.branch import Branch
from hf_longctx.ops.kernels import FUSED, KERNELS, Call
from hf_longctx.ops.layout import rotary_layout, rotates_halves
from hf_longctx.ops.masks import DOCUMENT, BeyondWindow, ByDistance, Causal, Full, Mask, Packed, TopBlocks, Window
from hf_longctx.ops.positions import Positions
from hf_longctx.ops.rotation import Rotation
from hf_longctx.ops.softmax import Part, softmax_of
from tests.ops.cases import LONG, SEES, Problem, SameParity, gradients, problem, selected, truth
from tests.ops.cases import MASKS as SMALL_MASKS

pytestmark = pytest.mark.gpu

SCALE = 0.1
MASKS = {**SMALL_MASKS, "window": Window(64), "outside": BeyondWindow(70)}
FAST = [name for name in KERNELS if name not in ("reference", "blocked", "selected", "flex")]
# relative to the norm of the whole tensor. bf16 keeps 8 bits, so rounding inputs of the second product and the output
# costs 2**-9 each; fp16 keeps 11. Gradients go through two more products.
TOLERANCE: dict[Any, tuple[float, float]] = {torch.bfloat16: (8e-3, 1.6e-2), torch.float16: (1e-3, 2e-3)}
# flex compiles for every shape: a few of them are enough
FLEX = [("prefill", "window"), ("chunk-after-a-cache", "outside"), ("padded-in-the-middle", "causal")]
BY_DISTANCE = [name for name, mask in MASKS.items() if isinstance(mask, ByDistance)]  # others no fast kernel takes
CASES = [(kernel, shape, mask) for kernel in FAST for shape in LONG for mask in BY_DISTANCE]


def off(actual: Tensor, expected: Tensor) -> float:
    assert actual.isfinite().all()
    return float((actual.double() - expected).norm() / expected.norm().clamp(min=1e-9))


def check_gradients(out: Tensor, true: Tensor, p: Problem) -> None:
    for name, mine, other in zip("qkv", gradients(out, p), gradients(true, p), strict=True):
        if name in "qk" and float(other.norm()) < 1e-9:
            # each query sees one key alone: its gradient is 0, to which nothing can be relative
            assert float(mine.norm()) <= 1e-4
        else:
            assert off(mine, other) <= TOLERANCE[torch.bfloat16][1], f"d{name}"


def call_of(branch: Branch, softcap: float | None = None) -> Call:
    return Call(branch.positions, branch.mask, SCALE, branch.bias, softcap)


def check(kernel: Any, branch: Branch, p: Problem, dtype: Any, softcap: float | None = None) -> None:
    """The branch alone; then merged with a second one that another kernel does, values and gradients."""
    call = call_of(branch, softcap)
    reason = kernel.unsupported_reason(call, p.q, p.k)
    if reason is not None:
        assert "its check" not in reason
        assert "is off by" not in reason
        pytest.skip(reason)
    tolerance, grad_tolerance = TOLERANCE[dtype]
    out, lse = kernel.forward(call, p.q, p.k, p.v)
    true_out, true_lse = truth([branch], SCALE, softcap=softcap)
    assert off(out, true_out) <= tolerance
    assert lse.dtype == torch.float32
    torch.testing.assert_close(lse.double(), true_lse, rtol=1e-3, atol=1e-3)  # fp32 sums of half-precision scores
    assert not out[true_lse.transpose(1, 2) == -math.inf].any()

    for x in (p.q, p.k, p.v):
        x.requires_grad_()
    positions = Positions(p.q_pos, p.k_pos[:, :5])
    far = Branch(p.q, p.k[:, :, :5] * 0.5, p.v[:, :, :5], positions, SMALL_MASKS["outside"])
    tensors = [(b.q_BHLD, b.k_BGSD, b.v_BGSD) for b in (branch, far)]
    parts = [Part(kernel, call, *tensors[0]), Part(KERNELS["reference"], call_of(far, softcap), *tensors[1])]
    merged, true = softmax_of(parts), truth([branch, far], SCALE, softcap=softcap)[0]
    assert off(merged, true) <= tolerance
    for name, mine, other in zip("qkv", gradients(merged, p), gradients(true, p), strict=True):
        assert off(mine, other) <= grad_tolerance, f"d{name}"


@pytest.mark.parametrize("dtype", TOLERANCE, ids=lambda d: str(d).removeprefix("torch."))
@pytest.mark.parametrize("heads", [(4, 4, 64), (9, 3, 128)], ids=["mha-d64", "gqa-d128"])
@pytest.mark.parametrize(("kernel", "shape", "mask"), CASES, ids=map("-".join, CASES))
def test_a_gpu_kernel(kernel: str, shape: str, mask: str, heads: tuple[int, int, int], dtype: Any) -> None:
    p = problem(shape, *heads, dtype=dtype, device="cuda")
    check(KERNELS[kernel], p.branch(MASKS[mask]), p, dtype)


@pytest.mark.parametrize(("shape", "mask"), FLEX, ids=map("-".join, FLEX))
def test_flex(shape: str, mask: str) -> None:
    p = problem(shape, 4, 2, 64, dtype=torch.bfloat16, device="cuda")
    check(KERNELS["flex"], p.branch(MASKS[mask]), p, torch.bfloat16)


@pytest.mark.parametrize("dim", [64, 80, 96, 256])
@pytest.mark.parametrize("mask", MASKS)
@pytest.mark.parametrize("shape", LONG)
def test_auto_takes_any_problem(shape: str, mask: str, dim: int) -> None:
    """Whatever kernels are chosen: LM-Infinite's sum of a branch and its far rest, with gradients."""
    p = problem(shape, 6, 2, dim, dtype=torch.bfloat16, device="cuda")
    for x in (p.q, p.k, p.v):
        x.requires_grad_()
    out, true = attend([p.branch(MASKS[mask])], scale=SCALE), truth([p.branch(MASKS[mask])], SCALE)[0]
    assert off(out, true) <= TOLERANCE[torch.bfloat16][0]
    check_gradients(out, true, p)


@pytest.mark.parametrize("n_first", [1, 10, 64, 100])
@pytest.mark.parametrize("shape", ["prefill", "chunk-after-a-cache", "left-padded"])
def test_auto_window_and_first_tokens(shape: str, n_first: int) -> None:
    """The first keys are added in place to a window's output: values and gradients."""
    p = problem(shape, 9, 3, 64, dtype=torch.bfloat16, device="cuda")
    for x in (p.q, p.k, p.v):
        x.requires_grad_()
    near = p.branch(Window(64))
    positions = Positions(p.q_pos, p.k_pos[:, :n_first], padded=near.positions.padded)
    branches = [near, Branch(p.q, p.k[:, :, :n_first], p.v[:, :, :n_first], positions, BeyondWindow(64))]
    out, true = attend(branches, scale=SCALE), truth(branches, SCALE)[0]
    assert off(out, true) <= TOLERANCE[torch.bfloat16][0]
    check_gradients(out, true, p)


def plain(kernel: str, p: Problem, branches: list[Branch], sink: Tensor | None = None) -> None:
    """Values and gradients of branches that no fast kernel does, beside those that one does."""
    for x in (p.q, p.k, p.v):
        x.requires_grad_()
    out, true = attend(branches, scale=SCALE, kernel=kernel, sink_H=sink), truth(branches, SCALE, sink)[0]
    assert off(out, true) <= TOLERANCE[torch.bfloat16][0]
    check_gradients(out, true, p)
    learned = [b.bias.weights for b in branches if b.bias is not None] + ([] if sink is None else [sink])
    for x in learned:
        mine, other = (torch.autograd.grad(y, x, p.grad.to(y.dtype), retain_graph=True)[0] for y in (out, true))
        assert off(mine, other.double()) <= TOLERANCE[torch.bfloat16][1]


@pytest.mark.parametrize("kernel", ["auto", "reference", "blocked"])
@pytest.mark.parametrize("shape", LONG)
def test_a_new_mask_works_at_once(shape: str, kernel: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(SEES, SameParity, lambda mask, q, k: (q % 2) == (k % 2))
    p = problem(shape, 6, 2, 64, dtype=torch.bfloat16, device="cuda")
    plain(kernel, p, [p.branch(SameParity())])


@pytest.mark.parametrize("kernel", ["auto", "reference", "blocked"])
@pytest.mark.parametrize("inside", [Causal(), Window(20), Full()], ids=lambda m: type(m).__name__)
def test_packed_documents(inside: Mask, kernel: str) -> None:
    p = problem("prefill", 6, 2, 64, dtype=torch.bfloat16, device="cuda")
    rows = [[100, 1, 200], [57, 244]]
    codes = [torch.cat([i * DOCUMENT + torch.arange(n) for i, n in enumerate(row)]) for row in rows]
    p.q_pos = p.k_pos = torch.stack(codes).cuda()
    plain(kernel, p, [p.branch(Packed(inside))])


@pytest.mark.parametrize("kernel", ["auto", "reference", "blocked"])
@pytest.mark.parametrize("shape", ["prefill", "chunk-after-a-cache", "left-padded", "one-token"])
def test_blocks_of_keys(shape: str, kernel: str) -> None:
    p = problem(shape, 6, 2, 64, dtype=torch.bfloat16, device="cuda")
    blocks = -(-p.q.shape[2] // 48), -(-p.k.shape[2] // 32)
    index = torch.rand(2, 6, *blocks, generator=torch.Generator().manual_seed(1)).argsort(-1)[..., :3].cuda()
    plain(kernel, p, [p.branch(TopBlocks(index, 48, 32, Causal()))])


@pytest.mark.parametrize("kernel", ["auto", "reference", "blocked"])
@pytest.mark.parametrize("shape", ["prefill", "chunk-after-a-cache", "left-padded", "one-token", "few-keys"])
def test_biases_and_a_sink(shape: str, kernel: str) -> None:
    """A window by a fast kernel, the rest with a bias by a plain one, one softmax with a sink."""
    p = problem(shape, 6, 2, 64, dtype=torch.bfloat16, device="cuda")
    slopes = DistanceSlopes(torch.rand(6, device="cuda").mul_(0.01).requires_grad_())
    table = DistanceBuckets(torch.randn(6, 9, device="cuda").requires_grad_(), lambda d: (d // 40).clamp(0, 8))
    sink = torch.randn(6, device="cuda").requires_grad_()
    for bias in (slopes, table):
        branches = [p.branch(Window(64)), p.branch(BeyondWindow(64), bias=bias)]
        plain(kernel, p, branches, sink)


def test_a_fused_kernel_with_a_sink() -> None:
    p = problem("one-token", 6, 2, 64, dtype=torch.bfloat16, device="cuda")
    branches, sink = [p.branch(Window(64)), p.branch(BeyondWindow(64))], torch.randn(6, device="cuda") + 3
    assert FUSED[0].unsupported_reason(branches) is None
    assert off(attend(branches, scale=SCALE, sink_H=sink), truth(branches, SCALE, sink)[0]) <= 1.6e-2


def test_rows_that_only_rise_are_square() -> None:
    """Causal attention of the same tokens needs no consecutive positions: zigzag shards have gaps."""
    p = problem("prefill", 6, 2, 64, dtype=torch.bfloat16, device="cuda")
    p.q_pos = p.k_pos = torch.where(p.k_pos < 150, p.k_pos, p.k_pos + 1000)
    branch = p.branch(Causal())
    assert branch.positions.same_rows
    assert not branch.positions.consecutive
    for name in ("cudnn", "cuda_flash", "triton_window"):
        check(KERNELS[name], branch, p, torch.bfloat16)
        for x in (p.q, p.k, p.v):
            x.requires_grad_(False)
    assert KERNELS["cuda_flash"].unsupported_reason(call_of(p.branch(Window(64))), p.q, p.k) is not None


@pytest.mark.parametrize("kernel", ["reference", "blocked"])
def test_plain_kernels_in_float32_on_the_gpu(kernel: str) -> None:
    p = problem("left-padded", 4, 2, 64, device="cuda")
    branch = p.branch(Window(64))
    out, lse = KERNELS[kernel].forward(call_of(branch), p.q, p.k, p.v)
    true_out, true_lse = truth([branch], SCALE)
    torch.testing.assert_close(out.double(), true_out, rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(lse.double(), true_lse, rtol=1e-5, atol=1e-5)


def test_selected_on_the_gpu() -> None:
    p, chosen = selected("prefill", heads=6, groups=2, dim=64, dtype=torch.bfloat16, device="cuda")
    check(KERNELS["selected"], p.branch(chosen), p, torch.bfloat16)


def test_a_square_causal_prefill_is_not_made_slower_by_padding_flags() -> None:
    p = problem("prefill", 4, 2, 64, dtype=torch.bfloat16, device="cuda")
    assert KERNELS["cudnn"].unsupported_reason(call_of(p.branch(Causal())), p.q, p.k) is None


@pytest.mark.parametrize("rotary_dim", [64, 32])
@pytest.mark.parametrize("rows", [1, 2])
def test_rotation_in_one_kernel_equals_the_models_own(rows: int, rotary_dim: int) -> None:
    from transformers.models.gpt_neox.modeling_gpt_neox import apply_rotary_pos_emb

    x = torch.randn(2, 3, 77, 64, device="cuda", dtype=torch.bfloat16)
    angle = torch.randn(rows, 77, rotary_dim // 2, device="cuda").repeat(1, 1, 2)
    cos, sin = angle.cos().bfloat16(), angle.sin().bfloat16()
    layout = rotary_layout(apply_rotary_pos_emb)
    assert rotates_halves(layout, 64, rotary_dim)
    rotation = Rotation(cos, sin, layout)
    slow = apply_rotary_pos_emb(x.double(), x.double()[:, :1], cos.double(), sin.double())[0]
    assert off(rotation(x), slow) <= 4e-3  # one rounding to 8 bits
    strided = x.transpose(1, 2).contiguous().transpose(1, 2)
    torch.testing.assert_close(rotation(strided), rotation(x), rtol=0, atol=0)
