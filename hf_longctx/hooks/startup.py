"""What `import hf_longctx` does, without importing torch or transformers: the hooks go in when transformers comes.

Each is put on its class once the module of that class has been executed, and imports what it needs when it is called.
So none is too late whichever is imported first, and none meets a transformers that is half imported.
"""

from __future__ import annotations

import functools
import importlib
import sys
import threading
from typing import Any

from ..settings import ATTENTION_NAMES, KEY, LOOK_UP_LAST
from .when_imported import WhenImported

CONFIG, MODELS = "transformers.configuration_utils", "transformers.modeling_utils"
GENERATION, MASKS = "transformers.generation.utils", "transformers.masking_utils"
PIPELINES = "transformers.pipelines.base"
CONTINUOUS = "transformers.generation.continuous_batching.continuous_api"
# module, class, method -> the function in transformers.py that is called in its place, with the stock one first
HOOKS = {
    (MODELS, "PreTrainedModel", "post_init"): "keyed_post_init",
    (GENERATION, "GenerationMixin", "_prepare_cache_for_generation"): "keyed_prepare_cache",
    (GENERATION, "GenerationMixin", "_prefill"): "keyed_prefill",
    (GENERATION, "GenerationMixin", "_get_stopping_criteria"): "keyed_stopping",
    (GENERATION, "GenerationMixin", "_valid_auto_compile_criteria"): "keyed_criteria",
    (MODELS, "PreTrainedModel", "get_compiled_call"): "keyed_compiled_call",
    (GENERATION, "GenerationMixin", "_extract_generation_mode_kwargs"): "keyed_mode_kwargs",
    (PIPELINES, "Pipeline", "check_model_type"): "keyed_model_type",
    (CONTINUOUS, "ContinuousMixin", "init_continuous_batching"): "keyed_continuous",
}
LIGHT = ("post_init", "check_model_type")  # what stock models go through when nothing of hf_longctx is used
# the registries of transformers, and hf_longctx's names in them -> the modules that have the functions
REGISTRIES = {
    (MODELS, "ALL_ATTENTION_FUNCTIONS", "attention"): {
        **dict.fromkeys((KEY, *ATTENTION_NAMES.values()), "attention.registry"),
        f"{KEY}_shared_prefix": "sharing.model",
        f"{KEY}_scattered": "editing.graph.attention",
        f"{KEY}_sequence_parallel": "parallel.model.interface",
    },
    (MASKS, "ALL_MASK_ATTENTION_FUNCTIONS", "mask"): {
        **dict.fromkeys((KEY, *ATTENTION_NAMES.values()), "attention.registry"),
        f"{KEY}_shared_prefix": "sharing.model",
    },
}
_made: dict[tuple[Any, str], tuple[Any, Any]] = {}  # (class, method) -> the stock one and its wrap
_lock = threading.RLock()


class Key:
    """`config.hf_longctx`, stored in the config's own `__dict__`, so that only keyed configs save it."""

    def __get__(self, config: Any, owner: Any = None) -> Any:
        return None if config is None else vars(config).get(KEY)

    def __set__(self, config: Any, value: Any) -> None:
        if value is None:
            vars(config).pop(KEY, None)
            return
        from ..method import read_key

        read_key(value)  # raises here, before any weight is read
        vars(config)[KEY] = value

    def __delete__(self, config: Any) -> None:
        vars(config).pop(KEY, None)


def install() -> None:
    """Put the hooks in place, now or when transformers is imported.

    Importing `hf_longctx` does; calling it again changes nothing.
    """
    transformers_watch.start()
    peft_watch.start()


def uninstall() -> None:
    """Take the hooks back: from now on a config's key is ignored. Models that carry a method keep it until its undo."""
    uninstall_peft()
    transformers_watch.stop()
    if not _installed():
        return
    delattr(_class(CONFIG, "PreTrainedConfig"), KEY)
    settings = _class(GENERATION, "GenerationConfig")
    if LOOK_UP_LAST in vars(settings or object):
        delattr(settings, LOOK_UP_LAST)
    for (owner, name), (stock, wrap) in _made.items():
        if vars(owner).get(name) is wrap:  # else it is under a wrap of other code, and passes through
            setattr(owner, name, stock)


def uninstall_peft() -> None:
    """Remove the wraps around peft alone. Models keep the methods that adapters have brought until their undo."""
    peft_watch.stop()
    if "hf_longctx.hooks.peft" in sys.modules:
        from . import peft as adapters

        adapters.unhook()


def _class(module: str, name: str) -> Any:
    """The object of this name in a module of transformers, if it is there yet."""
    return getattr(sys.modules.get(module), name, None)


def _installed() -> bool:
    return KEY in getattr(_class(CONFIG, "PreTrainedConfig"), "__dict__", {})


def _hook(module: str) -> None:
    """Put the hooks of one module in place."""
    with _lock:
        if module == CONFIG and not _installed():
            setattr(_class(CONFIG, "PreTrainedConfig"), KEY, Key())
        if module == GENERATION:
            setattr(_class(GENERATION, "GenerationConfig"), LOOK_UP_LAST, None)
        for (place, registry, function), names in REGISTRIES.items():
            if place == module:
                _register(_class(module, registry), function, names)
        for (place, owner, name), hook in HOOKS.items():
            if place == module:
                _wrap(_class(module, owner), name, hook)


def _wrap(owner: Any, name: str, hook: str) -> None:
    now = getattr(owner, name)
    stock, wrap = _made.get((owner, name), (None, None))
    if now is wrap:
        return
    if now is not stock:  # never wrapped, or other code has wrapped it meanwhile
        _made[owner, name] = now, _wrapped(now, name, hook)
    setattr(owner, name, _made[owner, name][1])


def _wrapped(stock: Any, name: str, hook: str) -> Any:
    @functools.wraps(stock)
    def wrap(self: Any, *args: Any, **kwargs: Any) -> Any:
        if not _installed():
            return stock(self, *args, **kwargs)  # uninstalled, under a wrap of other code
        in_use = "hf_longctx.patch" in sys.modules or getattr(getattr(self, "config", None), KEY, None)
        if name in LIGHT and not in_use:
            return stock(self, *args, **kwargs)  # stock models do without the imports below
        from . import transformers as hooks

        return getattr(hooks, hook)(stock, self, *args, **kwargs)

    return wrap


def _register(registry: Any, function: str, names: dict[str, str]) -> None:
    """Register stand-ins: the real functions need more imports, and replace these once they are imported."""
    for name, home in names.items():
        if name not in registry:
            type(registry).register(name, _late(home, function))


def _late(home: str, function: str) -> Any:
    def late(*args: Any, **kwargs: Any) -> Any:
        return getattr(importlib.import_module(f"hf_longctx.{home}"), function)(*args, **kwargs)

    return late


def _hook_peft(_: str) -> None:
    from . import peft as adapters

    adapters.hook()


transformers_watch = WhenImported([CONFIG, MODELS, GENERATION, MASKS, PIPELINES, CONTINUOUS], _hook)
peft_watch = WhenImported(["peft"], _hook_peft)
