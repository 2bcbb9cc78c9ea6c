"""Model classes that carry a method: `from hf_longctx.models import LongCtxLlamaForCausalLM`.

Any model class of transformers with `LongCtx` before its name is one, made when it is first asked for (`factory.py`).
"""

from __future__ import annotations

import sys
from typing import Any

from .base import LongCtx
from .factory import class_of, names

__all__ = ["LongCtx"]


def __getattr__(name: str) -> Any:
    if not name.startswith("LongCtx"):
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    try:
        return class_of(name)
    except AttributeError as error:
        # of an AttributeError, `from hf_longctx.models import NAME` shows that it came, and not what it says
        if sys._getframe(1).f_code.co_name == "_handle_fromlist":
            raise ImportError(str(error)) from None
        raise


def __dir__() -> list[str]:
    return sorted({*__all__, *names()})
