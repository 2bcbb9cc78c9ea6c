"""The fourth hook: a PEFT adapter that was trained under a method carries it in `adapter_config.json`.

Saving an adapter writes what its base model carries, native methods included, since an adapter holds no
`rope_parameters`; loading it onto a base without methods applies them, and onto a base with others is refused.
Everything here is inert for adapters without our entry, waits until peft is imported, and is taken back by
`uninstall`. Without hf_longctx peft ignores the entry, and warns that it does.
"""

from __future__ import annotations

import functools
import json
import os
from collections.abc import Callable
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

from .anatomy import find_tower
from .method import KEY, SCHEMA_VERSION, LongContextMethod, from_spec, read_key
from .patch import Patch, applied, unwrap
from .startup import peft_watch as _watch

if TYPE_CHECKING:
    from collections.abc import Iterator

_wrapped: list[tuple[Any, str, Any, Any]] = []  # owner, name, what it was, ours


# -- the entry ---------------------------------------------------------------------------------------------------------
def entry_of(model: Any) -> dict[str, Any] | None:
    """The entry of an adapter on `model`: every method that the base carries, and the rotary settings they gave."""
    patches = applied(model)
    if not patches:
        return None
    specs = [{**p.method.spec(), **({"native": True} if p.method.native else {})} for p in patches]
    if not any(p.method.native for p in patches):
        return {"version": SCHEMA_VERSION, "methods": specs}
    config: Any = patches[0].model.config
    # a base that was saved with native methods has no patch; by these settings it is known again
    return {"version": SCHEMA_VERSION, "methods": specs, "rope_parameters": config.rope_parameters}


def read_entry(entry: Any) -> list[LongContextMethod]:
    """The methods in an adapter's entry. ValueError says what is wrong with it."""
    specs = entry.get("methods") if isinstance(entry, dict) else None
    if not isinstance(specs, list):
        return read_key(entry)  # raises
    ours = [spec for spec in specs if not (isinstance(spec, dict) and spec.get("native"))]
    read_key({"version": entry.get("version"), "methods": ours})
    return [from_spec({k: v for k, v in spec.items() if k != "native"}) for spec in specs]


def adopt(model: Any, entry: Any, adapter: str) -> list[Patch]:
    """Give `model` the methods of an adapter's entry. One that has the same ones is left as it is."""
    wanted, have = read_entry(entry), [patch.method for patch in applied(model)]
    tower = find_tower(unwrap(model))
    config: Any = tower.config
    if "rope_parameters" in entry and config.rope_parameters == entry["rope_parameters"]:
        wanted, have = ([m for m in methods if not m.native] for methods in (wanted, have))
    if [m.resolve(config) for m in have] == [m.resolve(config) for m in wanted]:
        return []
    if have:
        raise ValueError(
            f"the adapter {adapter!r} was trained under {_names(wanted)} and the model carries {_names(have)}. Undo "
            f"these first (hf_longctx.undo(model)), or load the adapter onto the base model without them."
        )
    patches: list[Patch] = []
    with _undone_on_failure(patches):
        for method in wanted:
            patches.append(method.apply(model))
    return patches


def _names(methods: list[LongContextMethod]) -> str:
    return " and ".join(map(repr, methods)) or "no method"


@contextmanager
def _undone_on_failure(patches: list[Patch]) -> Iterator[None]:
    try:
        yield
    except BaseException:
        for patch in reversed(patches):
            patch.undo()
        raise


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
    from peft import PeftModel
    from peft.config import PeftConfigMixin
    from peft.tuners.adaption_prompt import AdaptionPromptModel
    from peft.tuners.tuners_utils import BaseTuner
    from transformers import PreTrainedModel

    if _wrapped:
        return
    _replace(PeftConfigMixin, "from_peft_type", _read)
    _replace(PeftConfigMixin, "save_pretrained", _write)
    _replace(PeftModel, "save_pretrained", _stamp)
    _replace(PreTrainedModel, "save_pretrained", _stamp)  # transformers' own way to keep an adapter
    _replace(BaseTuner, "inject_adapter", _inject)
    _replace(PeftModel, "add_adapter", _add)  # prompt learning and adaption prompts inject nothing
    _replace(AdaptionPromptModel, "add_adapter", _add_prompts)


def _replace(owner: Any, name: str, ours: Callable[..., Any]) -> None:
    was = vars(owner)[name]
    stock = was.__func__ if isinstance(was, classmethod) else was

    @functools.wraps(stock)
    def wrap(self: Any, *args: Any, **kwargs: Any) -> Any:
        if not _wrapped:
            return stock(self, *args, **kwargs)  # uninstalled, under a wrap of somebody else's
        return ours(stock, self, *args, **kwargs)

    new = classmethod(wrap) if isinstance(was, classmethod) else wrap
    setattr(owner, name, new)
    _wrapped.append((owner, name, was, new))


def _read(stock: Any, cls: Any, **kwargs: Any) -> Any:
    entry = kwargs.pop(KEY, None)
    config = stock(cls, **kwargs)
    if entry is not None:
        read_entry(entry)  # raises here, before any weight is read
        setattr(config, KEY, entry)
    return config


def _write(stock: Any, config: Any, save_directory: Any, **kwargs: Any) -> None:
    stock(config, save_directory, **kwargs)
    entry = vars(config).get(KEY)
    if entry is None:
        return
    path = os.path.join(save_directory, "adapter_config.json")
    with open(path, encoding="utf-8") as file:
        fields = json.load(file)
    with open(path, "w", encoding="utf-8") as file:
        file.write(json.dumps({**fields, KEY: entry}, indent=2, sort_keys=True))


def _stamp(stock: Any, model: Any, *args: Any, **kwargs: Any) -> Any:
    configs = getattr(model, "peft_config", None)
    if not isinstance(configs, dict):
        return stock(model, *args, **kwargs)
    before = [(config, vars(config).get(KEY)) for config in configs.values()]
    entry = entry_of(model)
    try:
        for config, _ in before:
            setattr(config, KEY, entry)  # None: a method that came with the adapter has been undone
        return stock(model, *args, **kwargs)
    finally:
        for config, was in before:
            setattr(config, KEY, was)  # the caller's object may make other adapters


def _inject(stock: Any, tuner: Any, model: Any, adapter: str, *args: Any, **kwargs: Any) -> Any:
    with _brought(tuner.peft_config[adapter], model, adapter):
        return stock(tuner, model, adapter, *args, **kwargs)


def _add(stock: Any, outer: Any, adapter: str, config: Any, *args: Any, **kwargs: Any) -> Any:
    with _brought(config if config.is_prompt_learning else None, outer.base_model, adapter):
        return stock(outer, adapter, config, *args, **kwargs)


def _add_prompts(stock: Any, tuner: Any, adapter: str, config: Any) -> Any:
    with _brought(config, tuner.model, adapter):
        return stock(tuner, adapter, config)


@contextmanager
def _brought(config: Any, model: Any, adapter: str) -> Iterator[None]:
    """Inside, `model` has the methods of an adapter's config; they stay unless the block raises."""
    entry = None if config is None else vars(config).get(KEY)
    patches = [] if entry is None else adopt(model, entry, adapter)
    with _undone_on_failure(patches):
        yield
