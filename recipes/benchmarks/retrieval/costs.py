"""The parts that need no reader: time and memory, whatever is read."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

from .large import large
from .older import older
from .one_layer import attention
from .run import Run
from .speed import beams, decoding, reading, recordings

COSTS: dict[str, Callable[[Run], Iterator[dict[str, Any]]]] = {
    part.__name__: part for part in (decoding, recordings, reading, beams, attention, large, older)
}
