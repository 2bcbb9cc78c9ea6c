"""The ways in which a model's attention can be reached, none of them by its family.

Most models ask transformers' attention interface for a function. Some call torch's attention themselves (Falcon), some
have a method `_attn` (GPT-J, CodeGen, GPT-NeoX Japanese).
"""

# B batch, H query heads, L queries, D head dim
from __future__ import annotations

import contextlib
import copy
import functools
import types
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

from ..upstream.caches import CACHE_NAMES
from ..upstream.signatures import names_in, parameters
from .subclass import stock_class

INTERFACE, TORCH, OWN = "transformers' attention interface", "scaled_dot_product_attention", "_attn"
# arguments of forwards that are tensors, or change nothing that matters here
COMMON = ("self", "hidden_states", "position_embeddings", "attention_mask", "position_ids", "use_cache", "kwargs",
          "output_attentions", "shared_kv_states")  # fmt: skip
PENDING = "_hf_longctx_call"  # in the __dict__ of a module whose `_attn` is about to be called


@dataclass(frozen=True)
class Reach:
    """How a forward is called, and its attention reached.

    Args:
        way: One of the three above; None: none of them.
        names: The names of its arguments.
        anything: It takes any others too.
        numbered: Those arguments that may be numbers which say where in the model it is called (Zamba 2, HRM).
    """

    way: str | None
    names: tuple[str, ...]
    anything: bool
    numbered: tuple[str, ...]

    def taken(self, kwargs: dict[str, Any]) -> dict[str, Any]:
        """Those arguments that it takes."""
        return kwargs if self.anything else {name: value for name, value in kwargs.items() if name in self.names}

    def given(self, embeddings: Any) -> dict[str, Any]:
        """The argument that is its position embeddings, if it takes any."""
        return {"position_embeddings": embeddings} if "position_embeddings" in self.names else {}

    def numbers(self, kwargs: dict[str, Any]) -> tuple[tuple[str, int], ...]:
        """Where in the model a call is, as far as numbers say it."""
        return tuple((name, kwargs[name]) for name in self.numbered if isinstance(kwargs.get(name), int))

    def run(self, forward: Any, module: Any, call: Any, hidden: Tensor, kwargs: dict[str, Any]) -> Any:
        """A stock forward whose attention is `call`, with the arguments of `LayerCall.__call__`."""
        if self.way == INTERFACE:
            return forward(module, hidden, longctx=call, **kwargs)
        kwargs = self.taken(kwargs)
        if self.way == TORCH:
            with named(module, "sdpa"), _Direct(module, call):
                return forward(module, hidden, **kwargs)
        vars(module)[PENDING] = call
        try:
            return forward(module, hidden, **kwargs)
        finally:
            del vars(module)[PENDING]


def reach_of(stock: Any) -> Reach:
    """How the forward of an attention class is called."""
    return _reach(stock.forward, callable(getattr(stock, "_attn", None)))


@functools.cache
def _reach(forward: Any, has_own: bool) -> Reach:
    code, taken = names_in(forward), parameters(forward)
    way = INTERFACE if "ALL_ATTENTION_FUNCTIONS" in code else TORCH if TORCH in code else None
    way = OWN if way is None and has_own and OWN in code else way
    anything = any(p.kind is p.VAR_KEYWORD for p in taken.values())
    others = (name for name in taken if name not in COMMON and name not in CACHE_NAMES)
    return Reach(way, tuple(taken), anything, tuple(others))


class _Direct(TorchFunctionMode):
    """torch's attention function, called by a model itself, is `call` meanwhile."""

    def __init__(self, module: Any, call: Any) -> None:
        super().__init__()
        self.module, self.call = module, call

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        if func is not torch.nn.functional.scaled_dot_product_attention:
            return func(*args, **kwargs)
        # what follows is not the model's own any more
        with torch._C.DisableTorchFunction():
            dropout = kwargs.get("dropout_p", 0.0)
            return self.call(self.module, *args[:3], kwargs.get("scale"), dropout, {})[0].transpose(1, 2)


def own_attention(stock: Any) -> Callable[..., Any] | None:
    """The `_attn` of the subclass of a class that has one: the pending call, where there is one."""
    if reach_of(stock).way != OWN:
        return None

    def _attn(self: Any, query: Tensor, key: Tensor, value: Tensor, *args: Any, **kwargs: Any) -> Any:
        call = vars(self).get(PENDING)
        if call is None:
            return stock._attn(self, query, key, value, *args, **kwargs)
        drops = (m.p for name, m in self.named_children() if "att" in name and isinstance(m, nn.Dropout))
        dropout = next(drops, 0.0) if self.training else 0.0
        return call(self, query, key, value, None, dropout, {})[0].transpose(1, 2), None

    return _attn


@contextlib.contextmanager
def reachable(module: Any, config: Any) -> Iterator[None]:
    """Make the attention of a stock module one that `Reach.run` reaches; `config` is its own where it has none."""
    added: dict[str, Any] = {}
    own = own_attention(stock_class(module))
    if own is not None:
        added["_attn"] = types.MethodType(own, module)
    if getattr(module, "config", None) is None:
        added["config"] = config
    vars(module).update(added)
    try:
        yield
    finally:
        for name in added:
            del vars(module)[name]


@contextlib.contextmanager
def named(module: Any, implementation: str) -> Iterator[None]:
    """A config that names this attention implementation, for a module that asks it."""
    own = module.config
    module.config = _config_naming(own, implementation)
    try:
        yield
    finally:
        module.config = own


def _config_naming(config: Any, implementation: str) -> Any:
    renamed_config = copy.copy(config)
    vars(renamed_config)["_attn_implementation_internal"] = implementation
    return renamed_config
