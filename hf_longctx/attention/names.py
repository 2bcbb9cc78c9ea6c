"""The names of our attention functions in transformers' registries."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, ClassVar

from ..settings import KEY

if TYPE_CHECKING:
    from typing_extensions import Self


class Named(str):
    """The name of an attention function of ours, and which of transformers' it stands before.

    A str, so that it is found in transformers' registries; `inner` rides along because a config serialises every other
    attribute that is put on it.
    """

    NAME: ClassVar[str]
    inner: str

    def __new__(cls, inner: str) -> Self:
        name = super().__new__(cls, cls.NAME)
        name.inner = inner
        return name

    def __reduce__(self) -> tuple[Any, ...]:
        return type(self), (self.inner,)


class Implementation(Named):
    """Of layers whose keys are un-rotated."""

    NAME = KEY
