"""Soft-capped scores, sinks, and values of another width than keys, against plain autograd in float64."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from hf_longctx.ops.attend import attend
from hf_longctx.ops.branch import Branch
from hf_longctx.ops.kernels import KERNELS, Call
from hf_longctx.ops.kernels.check import check_kernel
from hf_longctx.ops.kernels.reference import Reference
from hf_longctx.ops.masks import BeyondWindow, Causal, TopKeys, Window
from hf_longctx.ops.positions import Positions
from hf_longctx.ops.softmax import Part, softmax_of
from tests.ops.cases import Problem, gradients, problem, selected, truth, visible_pairs

SCALE, CAP, SIZE, FIRST = 0.4, 1.3, 5, 3
SINK = torch.tensor([1.5, -2.0, 0.0, 4.0], dtype=torch.float64)
# relative to the norm of the whole tensor: a few roundings of each dtype
BOUND: dict[Any, float] = {torch.float64: 1e-12, torch.float32: 3e-6, torch.bfloat16: 2.5e-2}
SHAPES = ("prefill", "left-padded", "chunk-after-a-cache", "a-row-of-padding")


def leaves(p: Problem) -> Problem:
    for x in (p.q, p.k, p.v):
        x.requires_grad_()
    return p


def branches_of(p: Problem, kernel: str) -> list[Branch]:
    """A window and, beyond it, the first keys; for chosen keys the same pairs as one choice."""
    first = Positions(p.q_pos, p.k_pos[:, :FIRST])
    two = [p.branch(Window(SIZE)), Branch(p.q, p.k[:, :, :FIRST], p.v[:, :, :FIRST], first, BeyondWindow(SIZE))]
    if kernel != "selected":
        return two
    seen = visible_pairs(two[0]).clone()
    seen[..., :FIRST] |= visible_pairs(two[1])
    slots = torch.where(seen, torch.arange(seen.shape[-1]), -1)
    return [p.branch(TopKeys(slots.topk(min(SIZE + FIRST, seen.shape[-1])).values))]


def off(mine: Tensor, true: Tensor) -> float:
    assert mine.isfinite().all()
    return float(((mine.double() - true.double()).norm() / true.double().norm().clamp(min=1e-6)).detach())


@pytest.mark.parametrize("dtype", BOUND, ids=lambda d: str(d).removeprefix("torch."))
@pytest.mark.parametrize("v_dim", [5, 8, 12])
@pytest.mark.parametrize("sinks", [False, True], ids=["", "sink"])
@pytest.mark.parametrize("softcap", [None, CAP], ids=["", "cap"])
@pytest.mark.parametrize("kernel", ["reference", "auto", "blocked", "selected"])
def test_values_and_gradients(kernel: str, softcap: float | None, sinks: bool, v_dim: int, dtype: Any) -> None:
    for shape in SHAPES:
        p = leaves(problem(shape, dtype=dtype, v_dim=v_dim))
        sink = SINK.clone().to(dtype).requires_grad_() if sinks else None
        branches = branches_of(p, kernel)
        out = attend(branches, scale=SCALE, kernel=kernel, sink_H=sink, softcap=softcap)
        true = truth(branches, SCALE, sink, softcap)[0]
        assert out.dtype == dtype
        assert out.shape == (*p.grad.shape[:3], v_dim)
        assert off(out, true) <= BOUND[dtype]
        mine, others = gradients(out, p), gradients(true, p)
        if sink is not None:
            mine += torch.autograd.grad(out, sink, p.grad)
            others += torch.autograd.grad(true, sink, p.grad.double())
        for name, grad, other in zip(("q", "k", "v", "sink"), mine, others, strict=False):
            assert grad.dtype == dtype
            assert off(grad, other) <= BOUND[dtype], f"{shape}: d{name}"


@pytest.mark.parametrize("kernel", ["reference", "selected"])
def test_gradcheck(kernel: str) -> None:
    p, chosen = selected("left-padded", dtype=torch.float64, heads=2, groups=1, dim=4, v_dim=3)
    mask: Any = chosen if kernel == "selected" else Window(4)

    def run(q: Tensor, k: Tensor, v: Tensor, sink: Tensor) -> Tensor:
        branch = Branch(q, k, v, Positions(p.q_pos, p.k_pos), mask)
        return attend([branch], scale=SCALE, kernel=kernel, sink_H=sink, softcap=CAP)

    leaves(p)
    assert torch.autograd.gradcheck(run, [p.q, p.k, p.v, SINK[:2].clone().requires_grad_()], fast_mode=True)


def module_of(p: Problem, **parameters: Tensor) -> Any:
    """What eager attention of transformers asks of a layer."""
    module: Any = nn.Module()
    module.num_key_value_groups = p.q.shape[1] // p.k.shape[1]
    for name, value in parameters.items():
        setattr(module, name, value)
    return module


def additive(p: Problem) -> Tensor:
    seen = visible_pairs(p.branch(Causal()))[:, :1]
    return torch.zeros(seen.shape, dtype=p.q.dtype).masked_fill(~seen, float("-inf"))


def test_a_cap_is_that_of_gemma_2() -> None:
    from transformers.models.gemma2.modeling_gemma2 import eager_attention_forward

    p = problem("prefill")
    stock = eager_attention_forward(module_of(p).eval(), p.q, p.k, p.v, additive(p), scaling=SCALE, softcap=CAP)[0]
    assert off(attend([p.branch(Causal())], scale=SCALE, softcap=CAP), stock) <= 1e-6
    assert off(attend([p.branch(Causal())], scale=SCALE), stock) > 1e-2, "the cap does something"


def test_a_sink_is_that_of_gpt_oss() -> None:
    from transformers.models.gpt_oss.modeling_gpt_oss import eager_attention_forward

    p = problem("prefill")
    stock = eager_attention_forward(module_of(p, sinks=SINK.float()).eval(), p.q, p.k, p.v, additive(p), scaling=SCALE)[
        0
    ]
    assert off(attend([p.branch(Causal())], scale=SCALE, sink_H=SINK.float()), stock) <= 1e-6


@pytest.mark.parametrize("softcap", [0.0, -1.0])
def test_a_cap_is_above_zero(softcap: float) -> None:
    with pytest.raises(ValueError, match="expected a number above 0"):
        attend([problem("prefill").branch(Causal())], scale=SCALE, softcap=softcap)


class Plain(Reference):
    """A kernel without a cap that wants one width."""

    name = "plain"
    softcaps = False
    unequal_dims = False

    def __init__(self) -> None:
        self.widths: list[int] = []

    def forward(self, call: Call, *qkv: Tensor) -> tuple[Tensor, Tensor]:
        self.widths += [x.shape[-1] for x in qkv]
        return super().forward(call, *qkv)


@pytest.fixture
def plain(monkeypatch: pytest.MonkeyPatch) -> Plain:
    kernel = Plain()
    monkeypatch.setitem(KERNELS, "plain", kernel)
    return kernel


def test_a_kernel_without_a_cap_refuses_one_by_name(plain: Plain) -> None:
    p = problem("prefill")
    settings: Any = {"scale": SCALE, "kernel": "plain", "softcap": CAP}
    with pytest.raises(ValueError, match=r"'plain' cannot do this attention: it has no soft-capping\. .*plain: it has"):
        attend([p.branch(Causal())], **settings)
    true = truth([p.branch(Causal())], SCALE, softcap=CAP)[0]
    assert off(attend([p.branch(Causal())], **settings, strict=False), true) <= 1e-6
    assert not plain.widths
    # sinks are merged after any kernel
    out = attend([p.branch(Causal())], scale=SCALE, kernel="plain", sink_H=SINK)
    assert off(out, truth([p.branch(Causal())], SCALE, SINK)[0]) <= 1e-6
    assert plain.widths


@pytest.mark.parametrize("name", ["cuda_flash", "cudnn"])
def test_kernels_of_torch_have_no_cap(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    p = problem("prefill")
    monkeypatch.setattr(type(KERNELS[name]), "device", None)
    call = Call(p.branch(Causal()).positions, Causal(), SCALE)
    q, k = p.q.half(), p.k.half()
    assert "soft-capping" not in str(KERNELS[name].unsupported_reason(call, q, k))
    assert KERNELS[name].unsupported_reason(replace(call, softcap=CAP), q, k) == "it has no soft-capping"


@pytest.mark.parametrize("v_dim", [5, 12])
def test_one_width_for_kernels_that_know_one(v_dim: int, plain: Plain) -> None:
    p = leaves(problem("left-padded", v_dim=v_dim))
    branches = branches_of(p, "plain")
    out, true = attend(branches, scale=SCALE, kernel="plain"), truth(branches, SCALE)[0]
    assert set(plain.widths) == {max(8, v_dim)}
    assert out.shape[-1] == v_dim
    assert off(out, true) <= 1e-6
    for mine, other in zip(gradients(out, p), gradients(true, p), strict=True):
        assert off(mine, other) <= 3e-6


def test_no_keys_give_zeros_of_the_values_width() -> None:
    p = problem("prefill", v_dim=5)
    nothing = Branch(p.q, p.k[:, :, :0], p.v[:, :, :0], Positions(p.q_pos, p.k_pos[:, :0]), Causal())
    out = attend([nothing], scale=SCALE)
    assert out.shape == (2, 37, 4, 5)
    assert not out.any()


@pytest.mark.parametrize("name", ["triton_window", "triton_few"])
@pytest.mark.parametrize("v_dim", [8, 5])
def test_gradients_beside_a_triton_forward(name: str, v_dim: int) -> None:
    """With a cap, what they use for gradients runs anywhere: it gets the merged output and log-sum-exp."""
    p = leaves(problem("prefill", dtype=torch.float64, v_dim=v_dim))
    branches = branches_of(p, name)
    true = truth(branches, SCALE, SINK, CAP)[0]

    class Forward(type(KERNELS[name])):  # type: ignore[misc]
        def forward(self, *given: Any) -> tuple[Tensor, Tensor]:
            return Reference().forward(*given)

        def merge_(self, call: Call, q: Tensor, k: Tensor, v: Tensor, *before: Tensor) -> tuple[Tensor, Tensor]:
            return Reference().merge_(call, q, k, v, *before)

    parts = []
    for b in branches:
        call = Call(b.positions, b.mask, SCALE, softcap=CAP)
        parts.append(Part(Forward(), call, b.q_BHLD, b.k_BGSD, b.v_BGSD))
    out = softmax_of(parts, SINK)
    for mine, other in zip(gradients(out, p), gradients(true, p), strict=True):
        assert off(mine, other) <= 1e-12


def test_blocks_of_queries_with_a_cap_equal_one_matrix() -> None:
    torch.manual_seed(1)
    L = 600  # three blocks, the last one odd
    q, k, v = (torch.randn(1, n, L, 8, dtype=torch.float64, requires_grad=True) for n in (2, 1, 1))
    pos = torch.arange(L)[None]
    found = []
    for kernel in ("blocked", "reference"):
        branches = [Branch(q, k, v, Positions(pos, pos), mask) for mask in (Window(200), BeyondWindow(200))]
        out = attend(branches, scale=0.5, softcap=CAP, kernel=kernel)
        found.append([out, *torch.autograd.grad(out.square().sum(), [q, k, v])])
    for mine, other in zip(*found, strict=True):
        assert off(mine, other) <= 1e-12


def test_layers_with_and_without_a_cap_share_positions() -> None:
    p = problem("prefill")
    positions = replace(p.branch(Causal()).positions, memo={})
    branch = Branch(p.q, p.k, p.v, positions, Causal())
    for softcap in (None, CAP, None, 2 * CAP):
        out = attend([branch], scale=SCALE, softcap=softcap, kernel="blocked")
        assert off(out, truth([branch], SCALE, softcap=softcap)[0]) <= 1e-6


class Uncapped(Reference):
    """One that says that it caps, and does not."""

    def forward(self, call: Call, *qkv: Tensor) -> tuple[Tensor, Tensor]:
        return super().forward(replace(call, softcap=None), *qkv)


class HalfTheGradient(Reference):
    """One that caps, and forgets the cap's derivative."""

    def gradients(self, call: Call, *given: Tensor) -> list[Tensor]:
        right = super().gradients(call, *given)
        return [0.5 * right[0], *right[1:]] if call.softcap is not None else right


def test_a_check_with_a_cap_finds_what_is_wrong_with_it() -> None:
    device, dtype = torch.device("cpu"), torch.float32
    for wrong, what in ((Uncapped(), "output"), (HalfTheGradient(), "dq")):
        assert check_kernel(wrong, device, dtype, 16) is None
        assert f"its {what} is off by" in str(check_kernel(wrong, device, dtype, 16, capped=True))
    assert check_kernel(Reference(), device, dtype, 16, capped=True) is None


@pytest.mark.parametrize("name", ["triton_window", "triton_few"])
def test_triton_kernels_are_checked_with_a_cap_before_their_first_use(
    name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked = []

    def checked(kernel: Any, device: Any, dtype: Any, dim: int, capped: bool, packed: bool) -> str:
        asked.append((kernel.name, dim, capped))
        return "its output is off by 0.7"

    monkeypatch.setattr("hf_longctx.ops.kernels.check.check_kernel", checked)
    kernel = type(KERNELS[name])()
    p = problem("prefill", dtype=torch.float16, dim=16)
    if name == "triton_few":
        p.k, p.k_pos = p.k[:, :, :40], p.k_pos[:, :40]
    call = Call(Positions(p.q_pos, p.k_pos, consecutive=True, padded=False), Window(16), SCALE)
    assert kernel.limits(call, p.q, p.k) is None
    for _ in range(2):
        assert kernel.limits(replace(call, softcap=CAP), p.q, p.k) == "its output is off by 0.7"
    assert asked == [(name, 16, True)]


def test_flex_caps_scores(monkeypatch: pytest.MonkeyPatch) -> None:
    """Uncompiled, it runs on the CPU; values and gradients."""
    from hf_longctx.ops.kernels import flex

    monkeypatch.setattr(flex, "_compiled", lambda: flex.fa.flex_attention)
    monkeypatch.setattr(flex.fa, "_validate_device", lambda *qkv: None)  # it refuses gradients on the CPU
    p = leaves(problem("prefill", dim=16))
    branch = p.branch(Window(SIZE))
    call = Call(branch.positions, branch.mask, SCALE, softcap=CAP)
    out = softmax_of([Part(flex.Flex(), call, p.q, p.k, p.v)], SINK)
    true = truth([branch], SCALE, SINK, CAP)[0]
    assert off(out, true) <= 1e-6
    for mine, other in zip(gradients(out, p), gradients(true, p), strict=True):
        assert off(mine, other) <= 3e-6


def test_the_flash_attn_package_is_told_of_the_cap() -> None:
    from hf_longctx.ops.kernels.cuda_flash import varlen
    from hf_longctx.ops.kernels.flash_attn import _settings

    p = problem("prefill")
    call = Call(p.branch(Causal()).positions, Causal(), SCALE)
    assert _settings(call, *varlen(call))["softcap"] == 0.0
    assert _settings(replace(call, softcap=CAP), *varlen(call))["softcap"] == CAP
