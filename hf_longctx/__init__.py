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

from .hooks.startup import install, uninstall

if TYPE_CHECKING:
    from .generation.share_beginning import share_beginning
    from .hub.configs import extend_config
    from .method import LongContextMethod, list_methods
    from .methods.giraffe import Giraffe
    from .methods.lm_infinite import LMInfinite
    from .methods.position_free import PositionFree
    from .methods.rope_scaling import RopeScaling
    from .methods.streaming_llm import StreamingLLM
    from .ops.attend import attend
    from .ops.branch import Branch
    from .patch import Patch, applied, undo
    from .planning.plan import plan
    from .sharing.prefix import load_prefix, shared_prefix
    from .streaming.reader import Reader, stream

__version__ = "0.1.0.dev0"

# public name -> the module that defines it; methods are the ones that register themselves when imported
_METHODS = {
    "Giraffe": "methods.giraffe",
    "LMInfinite": "methods.lm_infinite",
    "PositionFree": "methods.position_free",
    "RopeScaling": "methods.rope_scaling",
    "StreamingLLM": "methods.streaming_llm",
}
_NAMES = {
    "Branch": "ops.branch",
    "LongContextMethod": "method",
    "Patch": "patch",
    "Reader": "streaming.reader",
    "applied": "patch",
    "attend": "ops.attend",
    "extend_config": "hub.configs",
    "install": "hooks.startup",
    "load_prefix": "sharing.prefix",
    "list_methods": "method",
    "plan": "planning.plan",
    "share_beginning": "generation.share_beginning",
    "shared_prefix": "sharing.prefix",
    "stream": "streaming.reader",
    "undo": "patch",
    "uninstall": "hooks.startup",
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
