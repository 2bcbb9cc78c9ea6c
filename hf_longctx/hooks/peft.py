"""The fourth hook: a PEFT adapter that was trained under a method carries it in `adapter_config.json`.

Saving an adapter writes what its base model carries, native methods included, since an adapter holds no
`rope_parameters`; loading it onto a base without methods applies them. What does not go together on one base is refused
before anything is changed (`adapter_methods.py`), however the weights come: beside others, in place of others, through
PEFT or through transformers. Everything here is inert where no adapter has our entry, waits until peft is imported, and
is taken back by `uninstall`. Without hf_longctx peft ignores the entry, and warns that it does.
"""

from __future__ import annotations

import functools
import inspect
import json
import os
from collections.abc import Callable
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

from ..method import KEY
from ..storage.files import write_whole
from .adapter_methods import adopt, as_before_on_failure, check_swap, entry_of, read_entry, undone_on_failure
from .startup import peft_watch as _watch

if TYPE_CHECKING:
    from collections.abc import Iterator

_MISSING = object()
_wrapped: list[tuple[Any, str, Any, Any]] = []  # owner, name, what it was, ours


# -- the hook ----------------------------------------------------------------------------------------------------------
def install() -> None:
    """Put the hook in place, now or when peft is imported: we do not import it ourselves, since many never need it."""
    _watch.start()


def uninstall() -> None:
    """Take the hook back. Models keep what adapters have brought until its undo."""
    _watch.stop()
    for owner, name, was, ours in _wrapped:
        if vars(owner).get(name) is ours:  # else it lies under somebody else's wrap, and passes through
            setattr(owner, name, was)
    _wrapped.clear()


def hook() -> None:
    """Put the wraps around an imported peft; those that are there stay."""
    from peft import PeftMixedModel, PeftModel
    from peft.config import PeftConfigMixin
    from peft.tuners.adaption_prompt import AdaptionPromptModel
    from peft.tuners.tuners_utils import BaseTuner
    from peft.utils import hotswap
    from transformers import PreTrainedModel
    from transformers.integrations.peft import PeftAdapterMixin

    if _wrapped:
        return
    _replace(PeftConfigMixin, "from_peft_type", _read)
    _replace(PeftConfigMixin, "save_pretrained", _write)
    _replace(PeftModel, "save_pretrained", _stamp)
    _replace(PreTrainedModel, "save_pretrained", _stamp)  # transformers' own way to keep an adapter
    _replace(BaseTuner, "__init__", _build)
    _replace(BaseTuner, "inject_adapter", _inject)
    _replace(PeftModel, "add_adapter", _add)  # prompt learning and adaption prompts inject nothing
    _replace(AdaptionPromptModel, "add_adapter", _add_prompts)
    _replace(PeftModel, "from_pretrained", _from_pretrained)
    _replace(PeftMixedModel, "from_pretrained", _from_pretrained)
    _replace(PeftModel, "load_adapter", _load)  # mixed models call it, too
    _replace(PeftAdapterMixin, "load_adapter", _load_own)
    _replace(hotswap, "hotswap_adapter_from_state_dict", _hotswap)  # by which every swap of PEFT and diffusers goes


def _replace(owner: Any, name: str, ours: Callable[..., Any]) -> None:
    was = vars(owner)[name]
    stock = was.__func__ if isinstance(was, classmethod) else was

    @functools.wraps(stock)
    def wrap(*args: Any, **kwargs: Any) -> Any:
        if not _wrapped:
            return stock(*args, **kwargs)  # uninstalled, under a wrap of somebody else's
        return ours(stock, *args, **kwargs)

    new = classmethod(wrap) if isinstance(was, classmethod) else wrap
    setattr(owner, name, new)
    _wrapped.append((owner, name, was, new))


# -- configs -----------------------------------------------------------------------------------------------------------
def _read(stock: Any, cls: Any, **kwargs: Any) -> Any:
    entry = kwargs.pop(KEY, None)
    config = stock(cls, **kwargs)
    if entry is not None:
        read_entry(entry)  # raises here, before any weight is read
    setattr(config, KEY, entry)  # None: it comes from a file, which says nothing of methods
    return config


def _write(stock: Any, config: Any, save_directory: Any, **kwargs: Any) -> None:
    stock(config, save_directory, **kwargs)
    entry = vars(config).get(KEY)
    if entry is None:
        return
    path = os.path.join(save_directory, "adapter_config.json")
    with open(path, encoding="utf-8") as file:
        fields = json.load(file)
    write_whole(path, json.dumps({**fields, KEY: entry}, indent=2, sort_keys=True).encode())


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


# -- adapters that come beside others ----------------------------------------------------------------------------------
def _build(stock: Any, tuner: Any, model: Any, *args: Any, **kwargs: Any) -> None:
    """A tuner writes into the configs that `model` has before it looks at anything: taken back if it fails."""
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
    with undone_on_failure(adopt(model, configs[adapter], adapter, _besides(configs, adapter))):
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
        # PEFT asks for the config of a new adapter only, and reads weights over one that is there
        if there is not None and (found := _config_at(folder, outer._split_kwargs(given.get("kwargs", {}))[0])):
            adopt(outer, found, adapter, _besides(outer.peft_config, adapter))
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
    """The config beside an adapter's weights; None where there is none, as with weights that are given in memory."""
    from peft import PeftConfig

    if folder is None:
        return None
    try:
        return PeftConfig.from_pretrained(folder, **download)
    except ValueError as error:
        if str(error).startswith("Can't find"):
            return None
        raise
