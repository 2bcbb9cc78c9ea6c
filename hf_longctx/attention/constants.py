"""Rotations by constant distances, and what else is the same in every forward while the rotary embedding is."""

from __future__ import annotations

from collections.abc import Callable, Hashable
from typing import Any, TypeVar

import torch
from torch import Tensor, nn

from ..ops.rotation import Rotation

Made = TypeVar("Made", Tensor, Rotation)


class Constants:
    """Rotations, and tensors, that were made once; again when the frequencies are others. Copies begin empty.

    A recorded CUDA graph reads them where they lie, so what holds the graph holds `all()` of them too.
    """

    def __init__(self) -> None:
        self._of: tuple[Any, ...] = ()
        self._buffers: list[Tensor] = []  # held, so that no other one gets their identity
        self._made: dict[Hashable, Any] = {}

    def get(self, rotary: nn.Module, key: Hashable, make: Callable[[], Made]) -> Made:
        """`make()`, once for each key and state of `rotary`."""
        if torch.compiler.is_compiling():
            return make()
        buffers: list[Tensor] = list(rotary.buffers())
        now = (*((id(b), _version(b)) for b in buffers), *_numbers(rotary))
        if now != self._of:
            self._of, self._buffers, self._made = now, buffers, {}
        if key in self._made:
            kept: Made = self._made[key]
            return kept
        # what is made in inference mode could not be saved for a backward pass later
        with torch.inference_mode(False), torch.no_grad():
            made = make()
        first = made if isinstance(made, Tensor) else made.cos
        if type(first) is Tensor and not first.is_meta and not _recording(first):
            self._made[key] = made
        return made

    def all(self) -> list[Any]:
        """Those that are kept now."""
        return list(self._made.values())

    def __deepcopy__(self, memo: dict[int, Any]) -> Constants:
        return Constants()

    def __reduce__(self) -> tuple[Any, ...]:
        return Constants, ()


def _version(buffer: Tensor) -> int | None:
    """Counts changes in place; those of tensors made in inference mode are not counted."""
    return None if buffer.is_inference() else buffer._version


def _numbers(rotary: nn.Module) -> list[Any]:
    """Its settings besides, such as the factor of yarn."""
    return [value for value in vars(rotary).values() if isinstance(value, (int, float, str))]


def _recording(x: Tensor) -> bool:
    """Is it a tensor of a CUDA graph that is being recorded? Such a one has no values until the graph runs."""
    return x.device.type == "cuda" and torch.cuda.is_current_stream_capturing()
