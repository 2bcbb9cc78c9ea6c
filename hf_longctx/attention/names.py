"""The names of hf_longctx's attention functions in transformers' registries."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, ClassVar

from ..settings import KEY

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
        name = super().__new__(cls, cls.NAME)
        name.base_attention = base_attention
        return name

    def __reduce__(self) -> tuple[Any, ...]:
        return type(self), (self.base_attention,)


class Implementation(Named):
    """Of layers whose keys are un-rotated."""

    NAME = KEY
