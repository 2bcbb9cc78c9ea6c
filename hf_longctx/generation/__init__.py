"""Procedures, which `generate` calls through `custom_generate=` and which leave the model unchanged, one file each.

Names are imported when they are asked for: the registry looks into this folder without importing torch. The procedures
`xl3m` and `share_beginning`, which have the names of their files, are in `hf_longctx` itself.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from .xl3m import XL3M, Kept, Selection
    from .xl3m.prompt import around_text, text_before

_HOMES = {
    "XL3M": "xl3m",
    "Kept": "xl3m",
    "Selection": "xl3m",
    "around_text": "xl3m.prompt",
    "text_before": "xl3m.prompt",
}
__all__ = ["XL3M", "Kept", "Selection", "around_text", "text_before"]


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(importlib.import_module(f".{_HOMES[name]}", __name__), name)


def __dir__() -> list[str]:
    return __all__
