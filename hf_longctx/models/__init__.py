"""Model classes that carry a method: `from hf_longctx.models import LongCtxLlamaForCausalLM`.

Any model class of transformers with `LongCtx` before its name is one, made when it is first asked for (`factory.py`).
"""

from __future__ import annotations

from typing import Any

from .factory import LongCtx, class_of, names

__all__ = ["LongCtx"]


def __getattr__(name: str) -> Any:
    if name.startswith("LongCtx") and name[len("LongCtx") :][:1].isupper():
        return class_of(name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted({*__all__, *names()})
