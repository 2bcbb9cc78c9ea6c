"""Norms that are fused: which, what they compute, and what happens to the others."""

from __future__ import annotations

import copy
import logging
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from transformers.models.cohere.modeling_cohere import CohereLayerNorm
from transformers.models.gemma3.modeling_gemma3 import Gemma3RMSNorm
from transformers.models.llama.modeling_llama import LlamaRMSNorm
from transformers.models.zamba2.modeling_zamba2 import Zamba2RMSNormGated

from hf_longctx import TrainingMemory
from hf_longctx.ops.rms_norms import RMSNormForm, form_of, may_be_rms_norm
from hf_longctx.training.memory.norms import install_fused_norms
from tests.parallel.models import batch, make, relative

from .rungs import OFF, step

FUSED = TrainingMemory(**OFF | {"fused_norms": True})
KINDS = {"llama": LlamaRMSNorm, "gemma": Gemma3RMSNorm}


class Fused:
    """A norm alone, as the layer of a decoder."""

    def __init__(self, norm: nn.Module) -> None:
        from hf_longctx.patch import Patch

        self.norm = norm
        self.patch = Patch(method=FUSED, model=norm)
        with self.patch.recording():
            install_fused_norms(nn.ModuleList([norm]), self.patch)


def of(kind: str, dtype: torch.dtype = torch.float32) -> Any:
    """A norm with weights that are neither 0 nor 1."""
    norm = KINDS[kind](24, eps=1e-5).to(dtype)
    nn.init.normal_(norm.weight, generator=torch.Generator().manual_seed(1))
    return norm


def exact(norm: Any, x: Tensor, one: int) -> Tensor:
    """In double precision, by the formula."""
    wide = x.double()
    return wide / (wide.square().mean(-1, keepdim=True) + 1e-5).sqrt() * (norm.weight.double() + one)


@pytest.mark.parametrize(("kind", "one"), [("llama", 0), ("gemma", 1)])
def test_values_and_gradients_are_the_formula_s(kind: str, one: int) -> None:
    norm, x = of(kind), torch.randn(2, 5, 24, requires_grad=True)
    grad = torch.randn(2, 5, 24)
    right = exact(norm, x, one)
    expected = torch.autograd.grad(right, (x, norm.weight), grad.double())
    fused = Fused(norm)
    out = norm(x)
    assert relative(out, right) < 1e-6
    for found, want in zip(torch.autograd.grad(out, (x, norm.weight), grad), expected, strict=True):
        assert relative(found, want) < 1e-6
    fused.patch.undo()
    assert "forward" not in vars(norm)


@pytest.mark.parametrize("scale", [1e-3, 1.0, 100.0])
def test_bf16_is_no_further_from_the_formula_than_stock(scale: float) -> None:
    norm = of("llama", torch.bfloat16)
    x = (torch.randn(64, 24) * scale).to(torch.bfloat16)
    right, stock = exact(norm, x, 0), norm(x)
    Fused(norm)
    found = norm(x)
    assert found.dtype == stock.dtype
    assert relative(found, right) <= relative(stock, right)


def test_a_small_epsilon_shows() -> None:
    """Two norms that differ in nothing but an epsilon that is not the attribute's."""

    class Other(LlamaRMSNorm):
        def forward(self, hidden_states: Tensor) -> Tensor:
            return super().forward(hidden_states) * 0 + exact(self, hidden_states, 0).to(hidden_states.dtype)

    assert form_of(LlamaRMSNorm(24, eps=1e-6)) == RMSNormForm(1e-6, False)
    assert form_of(Other(24, eps=1e-6)) == "Other computes something else than an RMSNorm"
    assert form_of(Other(24, eps=1e-5)) == RMSNormForm(1e-5, False)


def test_forms() -> None:
    assert form_of(Gemma3RMSNorm(24)) == RMSNormForm(1e-6, True)
    with torch.device("meta"):
        assert form_of(Gemma3RMSNorm(24)) == RMSNormForm(1e-6, True)
    assert form_of(CohereLayerNorm(24)) == "CohereLayerNorm computes something else than an RMSNorm"
    for norm in (nn.RMSNorm(24), nn.LayerNorm(24), nn.Linear(3, 4), nn.Embedding(3, 4)):
        assert not may_be_rms_norm(norm)


def test_other_dtypes_and_gates_go_to_the_norm_s_own_forward() -> None:
    norm = of("llama")
    half = torch.randn(3, 24).to(torch.bfloat16)
    stock = norm(half)
    Fused(norm)
    assert torch.equal(norm(half), stock)
    gated: Any = Zamba2RMSNormGated(24, 24)
    x, gate = torch.randn(2, 3, 24)
    right = gated(x, gate)
    Fused(gated)
    assert torch.equal(gated(x, gate), right)
    assert torch.equal(gated(x, gate=gate), right)


def test_weights_that_become_bf16_afterwards() -> None:
    norm = of("gemma")
    Fused(norm)
    norm.to(torch.bfloat16)
    x = torch.randn(3, 24).to(torch.bfloat16)
    stock = Gemma3RMSNorm(24, eps=1e-5).to(torch.bfloat16)
    stock.load_state_dict(norm.state_dict())
    assert torch.equal(norm(x), stock(x))


def test_the_dtype_under_autocast_is_stock_s() -> None:
    norm = of("llama")
    for dtype in (torch.float32, torch.bfloat16):
        x = torch.randn(3, 24).to(dtype)
        with torch.autocast("cpu", torch.bfloat16):
            right = norm(x)
            fused = Fused(norm)
            assert norm(x).dtype == right.dtype
            fused.patch.undo()


def test_what_cannot_be_fused_is_said(caplog: pytest.LogCaptureFixture) -> None:
    model = make("gemma3").to(torch.bfloat16)
    with pytest.raises(
        ValueError, match=r"no norm can be fused .*Gemma3RMSNorm adds 1 to its weight in fp32.*bfloat16"
    ):
        FUSED.apply(model)
    mixed = make("llama")
    mixed.model.norm = CohereLayerNorm(mixed.config.hidden_size)
    with caplog.at_level(logging.WARNING, "hf_longctx"):
        FUSED.apply(mixed).undo()
    assert "these are not: 1 x CohereLayerNorm computes something else" in caplog.text


def test_twice_is_refused_and_changes_nothing() -> None:
    model = make("llama")
    patch = FUSED.apply(model)
    with pytest.raises(ValueError, match="LlamaRMSNorm is fused already"):
        FUSED.apply(model)
    assert sum("forward" in vars(m) for m in model.modules()) == 2 * len(model.model.layers) + 1
    patch.undo()
    assert not any("forward" in vars(m) for m in model.modules())


def test_a_copy_computes_with_its_own_weights() -> None:
    model, given = make("llama"), batch([[33]])
    with FUSED.on(model):
        copied = copy.deepcopy(model)
    with torch.no_grad():
        for part in copied.modules():
            if isinstance(part, LlamaRMSNorm):
                part.weight.mul_(2)
    right = make("llama")
    right.load_state_dict(copied.state_dict())
    assert step(copied, given)[0] == pytest.approx(step(right, given)[0], rel=1e-5)
