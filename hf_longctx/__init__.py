"""Read, edit, write and train on sequences far longer than a Hugging Face model was trained for.

    from hf_longctx import LMInfinite
    patch = LMInfinite(n_local=8192).apply(model)   # any Llama-like model in memory
    model.generate(...)                             # ... reads on for ever
    patch.undo()                                    # bit for bit as before

Importing imports neither torch nor transformers. Our names are registered with transformers, and hooks that are inert
for models without our key installed, when transformers is imported, or at once if it is (`startup.py`).
"""

from __future__ import annotations

import importlib.util
from typing import TYPE_CHECKING, Any

from .startup import install, uninstall

if TYPE_CHECKING:
    from .attention.branches import Branch, attend
    from .attention.lm_infinite import LMInfinite
    from .attention.position_free import PositionFree
    from .attention.streaming_llm import StreamingLLM
    from .cache.share_beginning import share_beginning
    from .cache.shared_prefix import load_prefix, shared_prefix
    from .hooks import extend_config
    from .method import LongContextMethod, methods
    from .patch import Patch, applied, undo
    from .planning.plan import plan
    from .rope.giraffe import Giraffe
    from .rope.rope_scaling import RopeScaling
    from .streaming import Reader, stream

__version__ = "0.1.0.dev0"

# public name -> the module that defines it; methods are the ones that register themselves when imported
_METHODS = {
    "Giraffe": "rope.giraffe",
    "LMInfinite": "attention.lm_infinite",
    "PositionFree": "attention.position_free",
    "RopeScaling": "rope.rope_scaling",
    "StreamingLLM": "attention.streaming_llm",
}
_NAMES = {
    "Branch": "attention.branches",
    "LongContextMethod": "method",
    "Patch": "patch",
    "Reader": "streaming",
    "applied": "patch",
    "attend": "attention.branches",
    "extend_config": "hooks",
    "install": "startup",
    "load_prefix": "cache.shared_prefix",
    "methods": "method",
    "plan": "planning.plan",
    "share_beginning": "cache.share_beginning",
    "shared_prefix": "cache.shared_prefix",
    "stream": "streaming",
    "undo": "patch",
    "uninstall": "startup",
    **_METHODS,
}
__all__ = sorted([*_NAMES, "__version__"])


def __getattr__(name: str) -> Any:
    if name in _NAMES:
        return getattr(importlib.import_module(f".{_NAMES[name]}", __name__), name)
    if name.startswith("_") or importlib.util.find_spec(f".{name}", __name__) is None:
        raise AttributeError(f"module 'hf_longctx' has no attribute {name!r}")
    return importlib.import_module(f".{name}", __name__)


def __dir__() -> list[str]:
    return sorted(__all__)


def load_methods() -> None:
    """Import every method's file, so that all are registered."""
    for module in set(_METHODS.values()):
        importlib.import_module(f".{module}", __name__)


install()
