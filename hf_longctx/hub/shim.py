"""Dual-mode folders: transformers' own architecture by default, and our class of it with `trust_remote_code=True`.

`config.json` names the stock class in `architectures`, so that whoever does not trust remote code, and every program
that looks that name up, gets the stock model. Its `auto_map` sends the others to `modeling_hf_longctx.py`, which
imports hf_longctx, or says in one line how to install it.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from ..settings import KEY
from ..storage.files import write_whole
from ..upstream.installing import INSTALL

PREFIX = "LongCtx"
FILE = "modeling_hf_longctx.py"
_MODULE = Path(FILE).stem

# The import stands in a `try`, where transformers does not look for missing packages and speak before us.
# Classes are found when they are asked for, since a later transformers may know Auto classes that this one does not.
_TEXT = '''\
"""The classes of hf_longctx for this model: transformers' own, and what the entry "hf_longctx" of config.json says."""

try:
    from hf_longctx import models
except ImportError as error:
    raise ImportError(
        f"This model reads long texts through hf_longctx, which cannot be imported ({error}). "
        "To install it: <INSTALL>. Or load the model without trust_remote_code=True: "
        "that gives the stock model, which reads no further than it was trained to."
    ) from error


def __getattr__(name):
    return getattr(models, name)
'''


def text() -> str:
    """What `modeling_hf_longctx.py` contains."""
    return _TEXT.replace("<INSTALL>", INSTALL)


def is_unchanged(written: str) -> bool:
    """Whether this is the file as a release of hf_longctx wrote it: the command that installs it may be another."""
    start, end = _TEXT.split("<INSTALL>")
    command = written.removeprefix(start).removesuffix(end)
    return written == f"{start}{command}{end}" and not set(command) & set('"\\\n{}`')


def class_name(stock: str) -> str:
    """The name of our class of a model class of transformers."""
    return stock if stock.startswith(PREFIX) else f"{PREFIX}{stock}"


def stock_names(architectures: list[str] | None) -> list[str]:
    """The names in a config's `architectures`, with that of transformers in the place of ours."""
    return [str(name).removeprefix(PREFIX) for name in architectures or []]


def auto_map(config_class: type, architectures: list[str]) -> dict[str, str]:
    """Our entries of `auto_map` for models of this config class: one for every Auto class that knows it.

    All of them, not only the one that was saved: loaded through another, with trust, it would be the stock model.
    `architectures` decides where an Auto class knows several classes of models.
    """
    from transformers.models.auto import modeling_auto

    found = {}
    for name, auto in vars(modeling_auto).items():
        known = getattr(auto, "_model_mapping", None)
        if not name.startswith("AutoModel") or known is None or config_class not in known:
            continue
        try:
            classes = known[config_class]
        except ValueError:  # a class that transformers lists and does not have: its own Auto class fails as well
            continue
        several = classes if isinstance(classes, (list, tuple)) else [classes]
        stock = next((cls for cls in several if cls.__name__ in architectures), several[0])
        found[name] = f"{_MODULE}.{class_name(stock.__name__)}"
    return found


def without_ours(entries: Any) -> dict[str, Any]:
    """The entries of an `auto_map` that are of other code."""
    return {name: place for name, place in (entries or {}).items() if not is_ours(place)}


def is_ours(place: Any) -> bool:
    """Whether an entry of `auto_map` leads to hf_longctx; in older releases the Hub id stands before it."""
    return isinstance(place, str) and place.rpartition("--")[2].startswith(f"{_MODULE}.")


def drop_ours(config: Any) -> None:
    """Take out of a config in memory what leads to the file of a dual-mode folder; `finish` writes it back."""
    entries = vars(config).get("auto_map")
    if entries and not (others := without_ours(entries)):
        del config.auto_map
    elif entries:
        config.auto_map = others


def can_be_dual(config: dict[str, Any]) -> bool:
    """Whether the model's code is transformers' own, of which there is a class of ours."""
    from transformers import CONFIG_MAPPING

    others = without_ours(config.get("auto_map"))
    return config.get("model_type") in CONFIG_MAPPING and not any(name.startswith("AutoModel") for name in others)


def entry_in(config: dict[str, Any]) -> Any:
    """The entry of hf_longctx in the fields of a config, or in those of the text config inside; None without one."""
    inner = (value for value in config.values() if isinstance(value, dict))
    return config[KEY] if config.get(KEY) is not None else next((f[KEY] for f in inner if f.get(KEY) is not None), None)


def finish(folder: str | Path, *, dual: bool = True) -> None:
    """Make a folder that `save_pretrained` has written consistent: a dual-mode one, or one without anything of ours.

    The stock architecture's name; `auto_map` and the file it names where the config has methods and `dual` is set, and
    neither of them otherwise. A folder without a config.json, such as an adapter's, is left as it is.
    """
    path, file = Path(folder) / "config.json", Path(folder) / FILE
    if not path.is_file():
        return
    config = json.loads(path.read_text(encoding="utf-8"))
    before = json.dumps(config)
    if "architectures" in config:
        config["architectures"] = stock_names(config["architectures"])
    ours = {}
    if dual and entry_in(config) is not None and can_be_dual(config):
        from transformers import CONFIG_MAPPING

        ours = auto_map(CONFIG_MAPPING[config["model_type"]], config.get("architectures") or [])
    if ours:
        write_whole(file, text().encode())
    elif file.is_file() and is_unchanged(file.read_text(encoding="utf-8", errors="replace")):
        file.unlink()
    if entries := without_ours(config.pop("auto_map", None)) | ours:
        config["auto_map"] = entries
    if json.dumps(config) != before:
        write_whole(path, (json.dumps(config, indent=2, sort_keys=True) + "\n").encode())
