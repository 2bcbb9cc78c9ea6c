"""A model from a PEFT adapter: the base that its config names, and the adapter on it.

transformers can do this as well, each of its releases with other releases of PEFT; through PEFT one way serves all
releases and every kind of adapter.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from ..method import LongContextMethod

# arguments of `from_pretrained` that say where files come from: an adapter's own, not its base's
DOWNLOAD = ("revision", "subfolder", "token", "cache_dir", "local_files_only", "force_download")


def read_entry(entry: Any) -> list[LongContextMethod]:
    """The methods in an adapter's entry, native ones included. ValueError says what is wrong with it."""
    from ..method import from_spec, read_key

    specs = entry.get("methods") if isinstance(entry, dict) else None
    if not isinstance(specs, list):
        return read_key(entry)  # raises
    own = [spec for spec in specs if not (isinstance(spec, dict) and spec.get("native"))]
    read_key({"version": entry.get("version"), "methods": own})
    return [from_spec({k: v for k, v in spec.items() if k != "native"}) for spec in specs]


def adapter_settings(location: str, kwargs: dict[str, Any]) -> dict[str, Any] | None:
    """An adapter's config; None for a model, also for one that has an adapter beside its weights."""
    from transformers.utils import find_adapter_config_file

    if Path(location).is_dir() and (Path(location) / "config.json").is_file():
        return None
    download = {key: kwargs[key] for key in DOWNLOAD if kwargs.get(key) is not None}
    found = find_adapter_config_file(location, **download)
    if found is None:
        return None
    try:
        settings: Any = json.loads(Path(found).read_text(encoding="utf-8"))
    except ValueError as error:
        raise ValueError(
            f"{location!r}: its adapter_config.json is no JSON ({error}). Save the adapter again."
        ) from error
    if not isinstance(settings, dict) or not settings.get("base_model_name_or_path"):
        raise ValueError(
            f"{location!r}: its adapter_config.json does not name the model that it adapts. Write the folder or Hub id "
            f"of its base there, as base_model_name_or_path."
        )
    return settings


def load_adapted(location: str, settings: dict[str, Any], **kwargs: Any) -> Any:
    """The adapter on its base, which gets all of `kwargs` but those about the adapter's own files."""
    from transformers import AutoModelForCausalLM

    try:
        from peft import PeftModel
    except ImportError as error:
        raise ImportError(f"{location!r} is a PEFT adapter, which needs PEFT: pip install peft") from error
    own = {key: kwargs.pop(key) for key in ("revision", "subfolder") if key in kwargs}
    download = {key: kwargs[key] for key in DOWNLOAD if kwargs.get(key) is not None}
    base = settings["base_model_name_or_path"]
    if settings.get("revision"):
        kwargs["revision"] = settings["revision"]
    loaded = AutoModelForCausalLM.from_pretrained(base, **kwargs)
    more = {key: kwargs[key] for key in ("device_map", "offload_folder", "max_memory") if key in kwargs}
    return PeftModel.from_pretrained(loaded, location, **own, **download, **more)
