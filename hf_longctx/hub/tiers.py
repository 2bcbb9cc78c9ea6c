"""What a saved model is to those who load it: native, plugin or dual."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ..upstream.installing import INSTALL
from . import shim


@dataclass(frozen=True)
class Tier:
    """A tier, and what loading gives in each situation, in words.

    Args:
        name: native, plugin or dual.
        loads: Pairs of a situation and what a reader gets in it.
    """

    name: str
    loads: tuple[tuple[str, str], ...]

    def __str__(self) -> str:
        return "; ".join([self.name, *(f"{where}: {what}" for where, what in self.loads)])


_STOCK, _EXTENDED = "the stock model", "the extended model"
_IMPORTED = "after `import hf_longctx`"
NATIVE = Tier("native", (("everywhere", "the model as it was saved; transformers needs nothing else"),))
PLUGIN = Tier("plugin", ((_IMPORTED, _EXTENDED), ("else", _STOCK)))
ADAPTER = Tier(
    "plugin", ((_IMPORTED, "the adapter, and its methods on the base"), ("else", "the adapter, on the base as it is"))
)
DUAL = Tier(
    "dual",
    (
        ("trust_remote_code=True, hf_longctx installed", _EXTENDED),
        ("trust_remote_code=True, hf_longctx not installed", f"an ImportError that says: {INSTALL}"),
        (_IMPORTED, _EXTENDED),
        ("else", _STOCK),
    ),
)


def read_json(folder: Path, name: str) -> dict[str, Any] | None:
    """The object in a file of `folder`; None without the file.

    Raises:
        ValueError: It is no JSON object.
    """
    path = folder / name
    if not path.is_file():
        return None
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:
        raise ValueError(f"{name} is no JSON ({error}). Save the model again.") from error
    if not isinstance(found, dict):
        raise ValueError(f"{name} holds {type(found).__name__}, expected an object. Save the model again.")
    return found


def is_adapter(folder: Path) -> bool:
    """Whether a folder holds an adapter and no model of its own."""
    return (folder / "adapter_config.json").is_file() and not (folder / "config.json").is_file()


def entry_of(folder: Path) -> Any:
    """The entry of hf_longctx in a folder's config.json, or in its adapter_config.json; None without one."""
    config = read_json(folder, "config.json")
    if config is None:
        config = read_json(folder, "adapter_config.json") or {}
    return shim.entry_in(config)


def procedures_of(folder: Path) -> list[dict[str, Any]]:
    """The settings of procedures (XL3M) that a model carries in its generation_config.json, as they were saved."""
    from ..registry import entries

    config = read_json(folder, "generation_config.json") or {}
    names = [name for name, entry in entries().items() if entry["kind"] == "procedure"]
    return [config[name] for name in names if isinstance(config.get(name), dict)]


def has_tokenizer(folder: Path) -> bool:
    """Whether there is a tokenizer beside the model."""
    return any((folder / name).is_file() for name in ("tokenizer.json", "tokenizer_config.json", "tokenizer.model"))


def tier_of(folder: Path) -> Tier:
    """The tier of a saved model or adapter, as its files are."""
    if entry_of(folder) is None:
        return NATIVE
    config = read_json(folder, "config.json")
    if config is None:
        return ADAPTER
    entries = config.get("auto_map")
    ours = isinstance(entries, Mapping) and any(map(shim.is_ours, entries.values()))
    return DUAL if ours and (folder / shim.FILE).is_file() else PLUGIN
