"""The hooks of PEFT: an adapter that was trained under a method carries it in `adapter_config.json`.

Saving an adapter writes the methods of its base model, native ones included, since an adapter holds no
`rope_parameters`; loading it onto a base without methods applies them. Adapters that cannot share a base are refused
before anything is changed (`adapter_methods.py`), whether their weights come beside others or in place of others,
through PEFT or through transformers. The wraps do nothing for adapters without the entry, wait until peft is imported,
and are removed by `uninstall`. Without hf_longctx peft ignores the entry, and warns that it does.
"""

from __future__ import annotations

import functools
import importlib
import inspect
import json
import os
from collections.abc import Callable
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

from ..hub.adapter import read_entry
from ..method import KEY
from ..storage.files import write_whole
from .adapter_methods import adopt_methods, as_before_on_failure, check_swap, entry_of

if TYPE_CHECKING:
    from collections.abc import Iterator

_MISSING = object()
_CLASSES = "hf_longctx.models"
_wrapped: list[tuple[Any, str, Any, Any]] = []  # owner, name, stock function, wrap


# -- the wraps ---------------------------------------------------------------------------------------------------------
def unhook() -> None:
    """Remove the wraps. Models keep the methods that adapters have brought until their undo."""
    for owner, name, stock, wrap in _wrapped:
        if vars(owner).get(name) is wrap:  # else other code has wrapped it again, and the wrap passes through
            setattr(owner, name, stock)
    _wrapped.clear()


def hook() -> None:
    """Put the wraps around an imported peft, unless they are in place."""
    from peft import PeftMixedModel, PeftModel
    from peft.config import PeftConfigMixin
    from peft.tuners.adaption_prompt import AdaptionPromptModel
    from peft.tuners.tuners_utils import BaseTuner
    from peft.utils import hotswap
    from transformers import PreTrainedModel
    from transformers.integrations.peft import PeftAdapterMixin

    if _wrapped:
        return
    wraps: tuple[tuple[Any, str, Callable[..., Any]], ...] = (
        (PeftConfigMixin, "from_peft_type", _read),
        (PeftConfigMixin, "save_pretrained", _write),
        (PeftModel, "save_pretrained", _stamp),
        (PreTrainedModel, "save_pretrained", _stamp),  # transformers' own way to keep an adapter
        (BaseTuner, "__init__", _build),
        (BaseTuner, "inject_adapter", _inject),
        (PeftModel, "add_adapter", _add),  # prompt learning and adaption prompts inject nothing
        (AdaptionPromptModel, "add_adapter", _add_prompts),
        (PeftModel, "from_pretrained", _from_pretrained),
        (PeftMixedModel, "from_pretrained", _from_pretrained),
        (PeftModel, "load_adapter", _load),  # mixed models call it, too
        (PeftAdapterMixin, "load_adapter", _load_own),
        (hotswap, "hotswap_adapter_from_state_dict", _hotswap),  # every swap of PEFT and diffusers calls it
    )
    for owner, name, function in wraps:
        stock = vars(owner)[name]
        wrap = _wrap_of(stock, function)
        setattr(owner, name, wrap)
        _wrapped.append((owner, name, stock, wrap))


def _wrap_of(stock: Any, function: Callable[..., Any]) -> Any:
    """A wrap that calls `function` with the stock function first."""
    plain = stock.__func__ if isinstance(stock, classmethod) else stock

    @functools.wraps(plain)
    def wrap(*args: Any, **kwargs: Any) -> Any:
        if not _wrapped:
            return plain(*args, **kwargs)  # uninstalled, below a wrap of other code
        return function(plain, *args, **kwargs)

    return classmethod(wrap) if isinstance(stock, classmethod) else wrap


# -- configs -----------------------------------------------------------------------------------------------------------
def _read(stock: Any, cls: Any, **kwargs: Any) -> Any:
    entry = kwargs.pop(KEY, None)
    config = stock(cls, **kwargs)
    if entry is not None:
        read_entry(entry)  # raises here, before any weight is read
    setattr(config, KEY, entry)  # None: it comes from a file without methods
    return config


def _write(stock: Any, config: Any, save_directory: Any, **kwargs: Any) -> None:
    stock(config, save_directory, **kwargs)
    entry = vars(config).get(KEY)
    path = os.path.join(save_directory, "adapter_config.json")
    with open(path, encoding="utf-8") as file:
        fields = json.load(file)
    changed = fields if entry is None else {**fields, KEY: entry}
    base = fields.get("auto_mapping") or {}
    if base.get("parent_library") == _CLASSES:  # PEFT would refuse to import it, without the package and with it
        stock_class = getattr(importlib.import_module(_CLASSES), base["base_model_class"]).stock_class
        names = {"base_model_class": stock_class.__name__, "parent_library": stock_class.__module__}
        changed = {**changed, "auto_mapping": {**base, **names}}
    if changed is not fields:
        write_whole(path, json.dumps(changed, indent=2, sort_keys=True).encode())


def _stamp(stock: Any, model: Any, *args: Any, **kwargs: Any) -> Any:
    configs = getattr(model, "peft_config", None)
    if not isinstance(configs, dict):
        return stock(model, *args, **kwargs)
    before = [(config, vars(config).get(KEY, _MISSING)) for config in configs.values()]
    entry = entry_of(model)
    try:
        for config, _ in before:
            setattr(config, KEY, entry)  # None: a method that came with the adapter has been undone
        return stock(model, *args, **kwargs)
    finally:
        for config, was in before:  # the caller's object may make other adapters
            if was is _MISSING:
                delattr(config, KEY)
            else:
                setattr(config, KEY, was)


# -- adapters that are added beside others -----------------------------------------------------------------------------
def _build(stock: Any, tuner: Any, model: Any, *args: Any, **kwargs: Any) -> None:
    """A tuner writes into the configs of `model` before it checks anything: restored if it fails."""
    configs = getattr(model, "peft_config", None)
    before = dict(configs) if isinstance(configs, dict) else {}
    try:
        stock(tuner, model, *args, **kwargs)
    except BaseException:
        if isinstance(configs, dict):
            configs.clear()
            configs.update(before)
        raise


def _inject(stock: Any, tuner: Any, model: Any, adapter: str, *args: Any, **kwargs: Any) -> Any:
    with _brought(tuner.peft_config, model, adapter):
        return stock(tuner, model, adapter, *args, **kwargs)


def _add(stock: Any, outer: Any, adapter: str, config: Any, *args: Any, **kwargs: Any) -> Any:
    if not config.is_prompt_learning:
        return stock(outer, adapter, config, *args, **kwargs)
    with _brought({**outer.peft_config, adapter: config}, outer.base_model, adapter):
        return stock(outer, adapter, config, *args, **kwargs)


def _add_prompts(stock: Any, tuner: Any, adapter: str, config: Any) -> Any:
    with _brought({**tuner.peft_config, adapter: config}, tuner.model, adapter):
        return stock(tuner, adapter, config)


@contextmanager
def _brought(configs: dict[str, Any], model: Any, adapter: str) -> Iterator[None]:
    """Inside, `model` has the methods of an adapter's config; they stay unless the block raises."""
    with as_before_on_failure(model):
        adopt_methods(model, configs[adapter], adapter, _besides(configs, adapter))
        yield


def _besides(configs: dict[str, Any], adapter: str) -> dict[str, Any]:
    return {name: config for name, config in configs.items() if name != adapter}


# -- weights that are read ---------------------------------------------------------------------------------------------
def _from_pretrained(stock: Any, cls: Any, model: Any, *args: Any, **kwargs: Any) -> Any:
    with as_before_on_failure(model):
        return stock(cls, model, *args, **kwargs)


def _load(stock: Any, outer: Any, *args: Any, **kwargs: Any) -> Any:
    given = inspect.signature(stock).bind(outer, *args, **kwargs).arguments
    folder, adapter = given["model_id"], given["adapter_name"]
    with as_before_on_failure(outer):
        there, found = outer.peft_config.get(adapter), None
        # PEFT reads the config of a new adapter only, and replaces the weights of an existing one
        if there is not None and (found := _config_at(folder, outer._split_kwargs(given.get("kwargs", {}))[0])):
            adopt_methods(outer, found, adapter, _besides(outer.peft_config, adapter))
        result = stock(outer, *args, **kwargs)
    if found is not None:
        setattr(there, KEY, vars(found)[KEY])
    return result


def _load_own(stock: Any, model: Any, *args: Any, **kwargs: Any) -> Any:
    given = inspect.signature(stock).bind(model, *args, **kwargs).arguments
    folder, adapter = given.get("peft_model_id"), given.get("adapter_name") or "default"
    with as_before_on_failure(model):
        if adapter in (getattr(model, "peft_config", None) or {}) and given.get("hotswap", "auto"):
            config = given.get("peft_config") or _config_at(folder, given.get("adapter_kwargs") or {})
            if config is not None:
                check_swap(model, config, adapter)
        return stock(model, *args, **kwargs)


def _hotswap(stock: Any, model: Any, state_dict: Any, adapter_name: str, config: Any, *args: Any, **kwargs: Any) -> Any:
    check_swap(model, config, adapter_name)
    return stock(model, state_dict, adapter_name, config, *args, **kwargs)


def _config_at(folder: Any, download: dict[str, Any]) -> Any:
    """The config beside an adapter's weights; None if there is none, as for weights in memory."""
    from peft import PeftConfig

    if folder is None:
        return None
    try:
        return PeftConfig.from_pretrained(folder, **download)
    except ValueError as error:
        if str(error).startswith("Can't find"):
            return None
        raise
