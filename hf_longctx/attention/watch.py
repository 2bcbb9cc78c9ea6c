"""Does a layer rotate at all? A forward of one token tells: families have attributes of many names for it, or none.

SmolLM3 has `use_rope`; Cohere2 and EXAONE 4 rotate where there is a sliding window.
"""

# B batch, L tokens, X hidden width
from __future__ import annotations

import contextlib
from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode


class _Touched(Exception):
    """The layer has used its cosines."""


class _Attended(Exception):
    """The layer has come to its attention."""


class _Watch(TorchFunctionMode):
    """Raises `_Touched` as soon as anything is computed from a tensor."""

    def __init__(self, tensor: Tensor) -> None:
        super().__init__()
        self.tensor = tensor

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        used = any(x is self.tensor for x in (*args, *(kwargs or {}).values()))
        if used and func.__name__ != "__get__":  # looking at its shape or dtype does not count
            raise _Touched
        return func(*args, **(kwargs or {}))


class _Stop:
    """Stands for the `LayerCall` that hf_longctx's attention function unpacks first of all."""

    def __iter__(self) -> Iterator[Any]:
        raise _Attended


@torch.no_grad()
def rotates(module: Any, stock: Any, hidden_BLX: Tensor) -> bool:
    """Does this layer compute anything from its position embeddings? Works on the meta device as well."""
    if getattr(module, "use_rope", True) in (False, 0):
        return False
    hidden = hidden_BLX[:1, :1]
    cos, sin = hidden.new_ones(2, 1, 1, 1).unbind()
    pos = torch.zeros(1, 1, dtype=torch.long, device=hidden.device)
    kwargs = {"attention_mask": None, "position_ids": pos, "longctx": _Stop()}
    try:
        with evaluating(module), _Watch(cos):
            stock.forward(module, hidden, position_embeddings=(cos, sin), **kwargs)
    except _Touched:
        return True
    except _Attended:
        return False
    raise TypeError("it attends without transformers' attention interface")


@contextlib.contextmanager
def evaluating(module: nn.Module) -> Iterator[None]:
    """Put every part of `module` into evaluation mode, and then back."""
    training = [(m, m.training) for m in module.modules()]
    module.eval()
    try:
        yield
    finally:
        for submodule, was in training:
            submodule.training = was
