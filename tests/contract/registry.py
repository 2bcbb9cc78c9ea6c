"""What the contract's properties share: their registry, and how they compare."""

# A property is a function (method, family) that raises where the method breaks the contract.
from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

PROPERTIES: dict[str, Callable[[Any, str], None]] = {}
ONLY: dict[str, Callable[[Any, str], bool]] = {}

# two orders of summation of the same O(3) numbers in fp32
CLOSE = {"rtol": 1e-5, "atol": 1e-5}


def prop(function: Callable[[Any, str], None]) -> Callable[[Any, str], None]:
    """Register a property under its own name."""
    PROPERTIES[function.__name__.replace("_", "-")] = function
    return function


def prop_where(condition: Callable[[Any, str], bool]) -> Callable[..., Any]:
    """Register a property that has a meaning for some methods and families only."""

    def register(function: Callable[[Any, str], None]) -> Callable[[Any, str], None]:
        ONLY[function.__name__.replace("_", "-")] = condition
        return prop(function)

    return register


def applies(name: str, method: Any, family: str) -> bool:
    return name not in ONLY or ONLY[name](method, family)


def close(actual: Tensor, expected: Tensor, why: str = "") -> None:
    torch.testing.assert_close(actual, expected, **CLOSE, msg=lambda m: f"{why}: {m}")


def same(actual: Tensor, expected: Tensor, why: str = "") -> None:
    torch.testing.assert_close(actual, expected, rtol=0, atol=0, msg=lambda m: f"{why}: {m}")


def equal_in_one_graph(model: nn.Module, forward: Callable[[Any], Tensor]) -> Any:
    """`model` compiled to one graph, which gives what it gives by itself."""
    eager = forward(model)
    torch._dynamo.reset()
    compiled = torch.compile(model, fullgraph=True, backend="eager")
    close(forward(compiled), eager)
    torch._dynamo.reset()
    return compiled


def differs(actual: Tensor, expected: Tensor, by: float = 1e-3) -> None:
    assert (actual - expected).abs().max() > by, "the method changed nothing"


def fingerprint(model: nn.Module) -> dict[str, Any]:
    """What a method could leave behind: classes, attributes, buffers, hooks and configs of every module."""
    found: dict[str, Any] = {}
    for name, module in model.named_modules():
        attributes = vars(module)
        hooks = {k: list(v) for k, v in attributes.items() if "_hooks" in k and hasattr(v, "keys")}
        config = attributes.get("config")
        own = {k: repr(v) for k, v in vars(config).items()} if config is not None else None
        values = {k: v for k, v in attributes.items() if type(v) in (bool, int, float, str)}
        buffers = {k: v.tolist() for k, v in module._buffers.items() if v is not None and not v.is_meta}
        found[name] = (type(module), set(attributes), values, buffers, hooks, id(config), own)
    return found
