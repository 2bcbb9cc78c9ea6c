"""Tiles under autocast: weights are cast once a layer, and gradients are those of tiles that cast for themselves."""

from __future__ import annotations

from collections import Counter
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode
from transformers import LlamaConfig
from transformers.models.llama.modeling_llama import LlamaMLP

from hf_longctx.training.memory.tiles import Tiled, in_tiles

HIDDEN, WIDTH, TILE = 24, 64, 16
SIZES = {"num_attention_heads": 2, "num_key_value_heads": 2}


class Casts(TorchDispatchMode):
    """Tensors that were made in another dtype, by shape."""

    def __init__(self) -> None:
        super().__init__()
        self.shapes: Counter[tuple[int, ...]] = Counter()

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        found = func(*args, **(kwargs or {}))
        if func is torch.ops.aten._to_copy.default and found.dtype != args[0].dtype:
            self.shapes[tuple(found.shape)] += 1
        return found


class ReadTwice(nn.Module):
    """A linear map whose weight is read in fp32 too."""

    def __init__(self) -> None:
        super().__init__()
        self.map = nn.Linear(HIDDEN, HIDDEN, bias=False)
        self.unused = nn.Parameter(torch.zeros(3))

    def forward(self, x: Tensor) -> Tensor:
        found: Tensor = self.map(x) * self.map.weight.square().mean()
        return found


def made(kind: str) -> nn.Module:
    torch.manual_seed(0)
    mlp = LlamaMLP(LlamaConfig(hidden_size=HIDDEN, intermediate_size=WIDTH, **SIZES))
    return mlp if kind == "MLP" else ReadTwice()


def gradients(module: nn.Module, tokens: int, tiled: bool) -> tuple[list[Tensor | None], Casts]:
    """Of all parameters and of the input, by `in_tiles` or tile by tile through autograd."""
    x = torch.randn(tokens, HIDDEN, generator=torch.Generator().manual_seed(1)).requires_grad_()
    grad = torch.randn(tokens, HIDDEN, generator=torch.Generator().manual_seed(2)).bfloat16()
    with Casts() as casts:
        with torch.autocast("cpu", torch.bfloat16):
            if tiled:
                out = in_tiles(Tiled(lambda part, _: module(part), module, TILE), x)
            else:
                out = torch.cat([module(part) for part in x.split(TILE)])
        out.backward(grad.to(out.dtype))
    return [*(p.grad for p in module.parameters()), x.grad], casts


@pytest.mark.parametrize("tokens", [4 * TILE, 4 * TILE - 5])
def test_gradients_are_those_of_stock_tiles(tokens: int) -> None:
    """Bit by bit: products in bf16, summed in fp32, in the order of the tiles."""
    module = made("MLP")
    mine, _ = gradients(module, tokens, True)
    sums: list[Tensor] = []
    x = torch.randn(tokens, HIDDEN, generator=torch.Generator().manual_seed(1))
    grad = torch.randn(tokens, HIDDEN, generator=torch.Generator().manual_seed(2)).bfloat16()
    for part, of in zip(x.split(TILE), grad.split(TILE), strict=True):
        with torch.autocast("cpu", torch.bfloat16):
            out = module(part)
        found = torch.autograd.grad(out, list(module.parameters()), of)
        assert {g.dtype for g in found} == {torch.float32}
        sums = [g.clone() for g in found] if not sums else [a + b for a, b in zip(sums, found, strict=True)]
    assert all(torch.equal(a, b) for a, b in zip(mine[:-1], sums, strict=True) if a is not None)


def test_a_weight_that_something_else_reads_too() -> None:
    found = []
    for tiled in (True, False):
        mine, _ = gradients(made("read twice"), 3 * TILE, tiled)
        found.append(mine)
    assert found[0][0] is None, "of a parameter that is not used"
    for one, other in zip(*found, strict=True):
        assert (one is None) == (other is None)
        if one is not None:
            assert (one - other).norm() < 4e-3 * other.norm()  # autograd sums gradients of tiles in bf16, of 8 bits


def test_weights_are_cast_once_in_forward_and_once_in_backward() -> None:
    """Then the gradient of the first tile is cast, with which the sum begins."""
    weights = {(WIDTH, HIDDEN): 2, (HIDDEN, WIDTH): 1}
    for tiles in (2, 8):
        _, casts = gradients(made("MLP"), tiles * TILE, True)
        assert {shape: casts.shapes[shape] for shape in weights} == {shape: 3 * n for shape, n in weights.items()}


def test_casts_without_gradients_serve_nobody_else() -> None:
    """The same module again, in the same region of autocast, computed by itself."""
    module = made("MLP")
    x = torch.randn(2 * TILE, HIDDEN, requires_grad=True)
    with torch.autocast("cpu", torch.bfloat16):
        in_tiles(Tiled(lambda part, _: module(part), module, TILE), x)
        out = module(x.detach())
    out.sum().backward()
    assert all(p.grad is not None and p.grad.any() for p in module.parameters())
