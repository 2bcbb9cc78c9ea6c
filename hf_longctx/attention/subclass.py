"""Subclasses of a model's own attention class, and the functions that its module defines beside it."""

from __future__ import annotations

import sys
from collections.abc import Callable
from typing import Any

from torch import nn
from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS


def subclass(factory: Callable[[Any], type[nn.Module]], stock: Any, prefix: str, forward: Any) -> type[nn.Module]:
    """A subclass of an attention class that differs in its forward; `factory` makes it of the stock class again."""

    def __reduce_ex__(self: nn.Module, protocol: Any) -> tuple[Any, ...]:
        return _rebuild, (factory, stock), self.__dict__  # pickle cannot find a class made by a function

    namespace = {"forward": forward, "__reduce_ex__": __reduce_ex__, "__module__": __name__, "_stock": stock}
    return type(f"{prefix}{stock.__name__}", (stock,), namespace)


def _rebuild(factory: Callable[[Any], type[nn.Module]], stock: Any) -> nn.Module:
    cls = factory(stock)
    return cls.__new__(cls)


def stock_class(module: Any) -> Any:
    """The model's own attention class, of which `module`'s may be a subclass of hf_longctx."""
    return getattr(type(module), "_stock", type(module))


def function_named(name: str, module: Any) -> Any:
    """The attention function of this name; eager is that of the module that defines the attention class."""
    eager = getattr(sys.modules[stock_class(module).__module__], "eager_attention_forward", None)
    return ALL_ATTENTION_FUNCTIONS.get_interface(name, eager)
