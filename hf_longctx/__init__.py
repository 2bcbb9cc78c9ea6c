"""Read, edit, write and train on sequences far longer than a Hugging Face model was trained for.

    from hf_longctx import LMInfinite
    patch = LMInfinite(n_local=8192).apply(model)   # any Llama-like model in memory
    model.generate(...)                             # ... works at any length
    patch.undo()                                    # bit-for-bit as before

Importing imports neither torch nor transformers. Our names are registered with transformers, and hooks that are inert
for models without our key installed, when transformers is imported, or at once if it is (`hooks/startup.py`).
"""

from __future__ import annotations

import importlib.util
from typing import TYPE_CHECKING, Any

from . import registry
from .hooks.startup import install, uninstall

if TYPE_CHECKING:
    from .generation.share_beginning import ShareBeginning, share_beginning
    from .generation.xl3m import XL3M, xl3m
    from .hub.configs import extend_config
    from .method import LongContextMethod
    from .methods.code_lookup import CodeLookup
    from .methods.giraffe import Giraffe
    from .methods.infllm import InfLLM
    from .methods.lm_infinite import LMInfinite
    from .methods.position_free import PositionFree, check
    from .methods.rope_scaling import RopeScaling
    from .methods.streaming_llm import StreamingLLM
    from .ops.attend import attend
    from .ops.branch import Branch
    from .parallel.model.switch import SequenceParallel
    from .patch import Patch, applied, undo
    from .planning.plan import plan
    from .planning.train.plan import plan_train
    from .registry import list_methods
    from .sharing.prefix import load_prefix, shared_prefix
    from .streaming.reader import Reader, stream
    from .training.accelerate import SequenceParallelConfig
    from .training.memory.settings import TrainingMemory
    from .training.memory.trainer import TrainingMemoryMixin
    from .training.preflight import PreflightMixin
    from .training.trainer import SequenceParallelMixin, SequenceParallelTrainer

__version__ = "0.1.0.dev0"

# module -> its public names; those of methods and procedures are in the registry
_NAMES = {
    "generation.share_beginning": ("share_beginning",),
    "generation.xl3m": ("xl3m",),
    "hooks.startup": ("install", "uninstall"),
    "hub.configs": ("extend_config",),
    "method": ("LongContextMethod",),
    "methods.position_free": ("check",),
    "ops.attend": ("attend",),
    "ops.branch": ("Branch",),
    "training.accelerate": ("SequenceParallelConfig",),
    "parallel.model.switch": ("SequenceParallel",),
    "training.memory.settings": ("TrainingMemory",),
    "training.memory.trainer": ("TrainingMemoryMixin",),
    "training.preflight": ("PreflightMixin",),
    "training.trainer": ("SequenceParallelMixin", "SequenceParallelTrainer"),
    "patch": ("Patch", "applied", "undo"),
    "planning.plan": ("plan",),
    "planning.train.plan": ("plan_train",),
    "registry": ("list_methods",),
    "sharing.prefix": ("load_prefix", "shared_prefix"),
    "streaming.reader": ("Reader", "stream"),
}
_HOMES = {name: module for module, names in _NAMES.items() for name in names}
_HOMES |= {entry["class"]: entry["module"] for entry in registry.table().values()}
__all__ = sorted([*_HOMES, "__version__"])


def __getattr__(name: str) -> Any:
    if name in _HOMES:
        return getattr(importlib.import_module(f".{_HOMES[name]}", __name__), name)
    if not name.startswith("_") and importlib.util.find_spec(f".{name}", __name__) is not None:
        return importlib.import_module(f".{name}", __name__)
    for entry in registry.entries().values():  # a method's file that the table does not have yet
        if entry["class"] == name:
            return getattr(importlib.import_module(f".{entry['module']}", __name__), name)
    raise AttributeError(f"module 'hf_longctx' has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted(__all__)


install()
