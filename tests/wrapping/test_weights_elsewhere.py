"""Quantised layers without a parameter: weights as buffers (GPTQ, AWQ), or in objects of torch's own (torch.ao)."""

from __future__ import annotations

import copy
import warnings
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import hf_longctx
from tests.contract.registry import close, differs
from tests.tiny import greedy_uncached, logits_of, text, tiny
from tests.wrapping.cases import METHODS, each_method

IDS = text(2, 40)


class Buffers(nn.Module):
    """A linear layer as kernels for 8 bits keep it."""

    def __init__(self, linear: nn.Linear) -> None:
        super().__init__()
        scale = linear.weight.detach().abs().amax(1, keepdim=True) / 127
        self.in_features, self.out_features = linear.in_features, linear.out_features
        self.register_buffer("qweight", (linear.weight.detach() / scale).round().to(torch.int8))
        self.register_buffer("scales", scale)

    def forward(self, x: Tensor) -> Tensor:
        return nn.functional.linear(x, self.weight)

    @property
    def weight(self) -> Tensor:
        weight: Tensor = self.qweight * self.scales
        return weight


def as_buffers(model: Any) -> Any:
    for layer in model.model.layers:
        for part in (layer.self_attn, layer.mlp):
            for name, linear in list(part.named_children()):
                if isinstance(linear, nn.Linear):
                    setattr(part, name, Buffers(linear))
    return model


def dequantised(model: Any) -> Any:
    """The same weights as parameters of the stock layers."""
    other = tiny()
    with torch.no_grad():
        for path, module in model.named_modules():
            if isinstance(module, Buffers):
                other.get_submodule(path).weight.copy_(module.weight)
    return other


@each_method
def test_weights_in_buffers_are_those_in_parameters(method: Any) -> None:
    model = as_buffers(tiny())
    assert not list(model.model.layers[0].self_attn.parameters())
    before, expected = logits_of(model, IDS), dequantised(model)
    close(before, logits_of(expected, IDS), "the two models")
    method.apply(expected)
    with method.on(model):
        close(logits_of(model, IDS), logits_of(expected, IDS))
        differs(logits_of(model, IDS), before)
        written = model.generate(IDS[:1], max_new_tokens=6, do_sample=False)
        assert torch.equal(written, greedy_uncached(expected, IDS[:1], 6))
    close(logits_of(model, IDS), before, "undone")


def test_a_model_that_is_quantised_under_a_method() -> None:
    model = tiny()
    METHODS["lm_infinite"].apply(model)
    logits_of(model, IDS)
    as_buffers(model)
    expected = dequantised(model)
    METHODS["lm_infinite"].apply(expected)
    close(logits_of(model, IDS), logits_of(expected, IDS))
    close(logits_of(copy.deepcopy(model), IDS), logits_of(expected, IDS), "a copy")


def test_activations_that_are_rounded_by_the_range_of_all_tokens_are_refused_with_a_reason() -> None:
    """The weights are no tensors here; and what a token gives depends on the others that are read with it."""
    if torch.backends.quantized.engine == "none":
        pytest.skip("torch was built without quantised kernels")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # deprecated, and used
        model = torch.ao.quantization.quantize_dynamic(tiny(), {nn.Linear}, dtype=torch.qint8)
    before = logits_of(model, IDS)
    with pytest.raises(ValueError, match="failed the parity check"):
        METHODS["lm_infinite"].apply(model)
    assert torch.equal(logits_of(model, IDS), before)


def test_a_shared_prefix() -> None:
    model = as_buffers(tiny())
    whole = model.generate(IDS[:1], max_new_tokens=6, do_sample=False)
    with hf_longctx.shared_prefix(model, IDS[:1, :30]) as prefix:
        written = prefix.generate(IDS[:1, 30:], attention_mask=torch.ones(1, 10), max_new_tokens=6, do_sample=False)
    assert torch.equal(written[:, -6:], whole[:, -6:])
