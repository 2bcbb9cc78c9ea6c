"""Names of hf_longctx's attention functions in transformers' registries, and the functions that they stand before."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, ClassVar

from torch import nn
from transformers.masking_utils import ALL_MASK_ATTENTION_FUNCTIONS

from ..settings import ATTENTION_NAMES
from .subclass import function_named

if TYPE_CHECKING:
    from typing_extensions import Self


class Named(str):
    """The name of an attention function of hf_longctx, with the name that the model had before: its `base_attention`.

    A str, so that it is found in transformers' registries; `base_attention` is an attribute of it because a config
    serialises every other attribute that is put on it.
    """

    NAME: ClassVar[str]
    base_attention: str

    def __new__(cls, base_attention: str) -> Self:
        """Make the name that stands before `base_attention`."""
        name = super().__new__(cls, cls.NAME)
        name.base_attention = base_attention
        return name

    def __reduce__(self) -> tuple[Any, ...]:
        return type(self), (self.base_attention,)


_BASE_OF = {name: base for base, name in ATTENTION_NAMES.items()}


def is_unrotated(name: Any) -> bool:
    """Is it the name of layers whose keys are un-rotated? These are `ATTENTION_NAMES`."""
    return name in _BASE_OF


def base_of(name: Any) -> str | None:
    """The name that the model had before, if `name` is one of hf_longctx's; else None."""
    return name.base_attention if isinstance(name, Named) else _BASE_OF.get(name)


def base_function(module: nn.Module) -> Any:
    """The attention function that the model had before."""
    return function_named(_base_name(module.config), module)


def base_mask(*args: Any, **kwargs: Any) -> Any:
    """The mask that goes with it."""
    return ALL_MASK_ATTENTION_FUNCTIONS[_base_name(kwargs["config"])](*args, **kwargs)


def _base_name(config: Any) -> str:
    name = config._attn_implementation
    base = base_of(name)
    if base is None:
        raise ValueError(
            f"attn_implementation={name!r} is reserved for hf_longctx and cannot be passed directly. Choose "
            f"'sdpa' or another, and apply the method to the model: hf_longctx.LMInfinite().apply(model)."
        )
    return base
