"""What a saved or published model loads as, with hf_longctx and without, and what is wrong with it."""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from ..storage.files import write_whole
from . import shim
from .outgoing import MODEL
from .tiers import Tier, entry_of, has_tokenizer, procedures_of, read_json, tier_of

if TYPE_CHECKING:
    from ..method import LongContextMethod
    from ..registry import Recorded


_EDITED = (
    f"{shim.FILE} was edited by hand, and runs on the machine of whoever trusts it. Delete it, then "
    f"`hf-longctx hub repair` writes it again."
)


@dataclass(frozen=True)
class Report:
    """What `check` found.

    Args:
        tier: What loading gives.
        methods: The methods and procedures that it carries, as they are written in Python.
        problems: What is wrong, each with its remedy.
        notes: What its readers should know.
    """

    tier: Tier
    methods: tuple[str, ...]
    problems: tuple[str, ...]
    notes: tuple[str, ...]


def check(folder: str | Path) -> Report:
    """Look at a saved model or adapter; no weights are read.

    Raises:
        FileNotFoundError: It is no folder with a config.json or adapter_config.json.
        ValueError: One of these is no JSON.
    """
    place = _folder(folder)
    wrong = list(_of_entry(place))
    carried = [] if wrong else [*_methods(place), *_procedures(place)]
    methods = tuple(map(repr, carried))
    return Report(tier_of(place), methods, (*wrong, *_of_files(place), *_of_generation(place)), tuple(notes_of(place)))


def refuse_inconsistent(folder: Path) -> None:
    """ValueError with the first thing that `check` finds wrong: for what is about to be published."""
    for problem in (*_of_entry(folder), *_of_files(folder)):
        raise ValueError(problem)


def refuse_edited(folder: Path) -> None:
    """ValueError if the file for `trust_remote_code=True` is not as hf_longctx wrote it."""
    if _is_edited(folder):
        raise ValueError(_EDITED)


def _is_edited(folder: Path) -> bool:
    file = folder / shim.FILE
    return file.is_file() and not shim.is_unchanged(file.read_text(encoding="utf-8", errors="replace"))


def repair(folder: str | Path) -> list[str]:
    """Mend what `check` finds where the remedy is certain, and return what was done.

    The stock architecture's name, the file that `auto_map` leads to, an `auto_map` without methods, and settings in
    generation_config.json that loading would drop. A file that was edited by hand is not overwritten.

    Raises:
        FileNotFoundError: It is no folder with a config.json or adapter_config.json.
        ValueError: The entry of hf_longctx is wrong, or its file was edited.
    """
    place, done = _folder(folder), []
    for problem in _of_entry(place):
        raise ValueError(problem)
    refuse_edited(place)
    before = (place / "config.json").read_bytes() if (place / "config.json").is_file() else b""
    had_file = (place / shim.FILE).is_file()
    config = read_json(place, "config.json") or {}
    shim.finish(place, dual=had_file or any(map(shim.is_ours, (config.get("auto_map") or {}).values())))
    if (place / shim.FILE).is_file() != had_file:
        done.append(f"{shim.FILE}: {'removed' if had_file else 'written'}")
    if before and (place / "config.json").read_bytes() != before:
        done.append("config.json: architectures and auto_map")
    if keep_settings(place):
        done.append("generation_config.json: its settings are kept when it is loaded")
    return done


def keep_settings(folder: Path) -> bool:
    """Mark a generation config with settings of ours, which transformers else drops at loading. Whether it did."""
    if not list(_of_generation(folder)):
        return False
    config = read_json(folder, "generation_config.json") or {}
    config.pop("_from_model_config")
    write_whole(folder / "generation_config.json", (json.dumps(config, indent=2, sort_keys=True) + "\n").encode())
    return True


def _folder(folder: str | Path) -> Path:
    place = Path(folder).expanduser()
    if not any((place / name).is_file() for name in MODEL):
        raise FileNotFoundError(
            f"{str(folder)!r}: expected the folder of a saved model, with a config.json or adapter_config.json."
        )
    return place


def _methods(folder: Path) -> list[LongContextMethod]:
    from ..method import read_key
    from .adapter import read_entry

    entry = entry_of(folder)
    if entry is None:
        return []
    return read_key(entry) if (folder / "config.json").is_file() else read_entry(entry)


def _procedures(folder: Path) -> list[Recorded]:
    from ..registry import from_spec

    return [from_spec(spec) for spec in procedures_of(folder)]


def _of_entry(folder: Path) -> Iterator[str]:
    try:
        _methods(folder)
    except ValueError as error:
        yield str(error)


def _of_files(folder: Path) -> Iterator[str]:
    """Problems of the file for `trust_remote_code=True`, and of what leads to it."""
    config, file = read_json(folder, "config.json"), folder / shim.FILE
    if config is None:
        return
    entries = config.get("auto_map") or {}
    ours = {name: place for name, place in entries.items() if shim.is_ours(place)}
    mend = "Run `hf-longctx hub repair` on the folder."
    if _is_edited(folder):
        yield _EDITED
    if ours and not file.is_file():
        yield f"auto_map leads to {shim.FILE}, which is not there: trust_remote_code=True fails. {mend}"
    if file.is_file() and not ours and shim.entry_in(config) is not None and shim.can_be_dual(config):
        yield f"{shim.FILE} is there and auto_map does not lead to it: trust_remote_code=True is without effect. {mend}"
    if ours and shim.entry_in(config) is None:
        yield f"auto_map leads to hf_longctx, and the config names no method. {mend}"
    named = [name for name in config.get("architectures") or [] if str(name).startswith(shim.PREFIX)]
    if named:
        yield f"architectures names {named[0]}, which transformers does not have. {mend}"
    places = {str(place).rpartition("--")[2] for place in entries.values() if isinstance(place, str)}
    lost = {place.partition(".")[0] for place in places if "--" not in place} - {Path(shim.FILE).stem}
    for module in sorted(lost):
        remote = any(isinstance(p, str) and "--" in p and f"{module}." in p for p in entries.values())
        if not remote and not (folder / f"{module}.py").is_file():
            yield f"auto_map leads to {module}.py, which is not there: trust_remote_code=True fails. Put it there."


def _of_generation(folder: Path) -> Iterator[str]:
    config = read_json(folder, "generation_config.json") or {}
    ours = procedures_of(folder)
    if ours and config.get("_from_model_config"):
        yield (
            f"generation_config.json has settings of {ours[0]['name']}, which loading drops (_from_model_config is "
            f"set). Run `hf-longctx hub repair` on the folder."
        )


def notes_of(folder: Path) -> Iterator[str]:
    """What readers of a saved model should know, although nothing is wrong with it."""
    card = folder / "README.md"
    ours = entry_of(folder) is not None
    if not card.is_file():
        lacks = "that hf_longctx gives the extended model" if ours else "how it is loaded, and the Hub not what it is"
        yield f"no README.md: a reader is not told {lacks}. `hf-longctx card` writes one."
    elif ours and "hf_longctx" not in card.read_text(encoding="utf-8", errors="replace"):
        yield "README.md does not mention hf_longctx: a reader is not told what gives the extended model."
    elif not card.read_text(encoding="utf-8", errors="replace").startswith("---"):
        yield "README.md does not begin with YAML (library_name, base_model, tags), by which the Hub finds models."
    for spec in procedures_of(folder):
        yield f"the settings of {spec['name']} count where `generate` has custom_generate=hf_longctx.{spec['name']}."
    if (folder / "config.json").is_file() and not has_tokenizer(folder):
        yield "no tokenizer: readers must take one from elsewhere. tokenizer.save_pretrained writes it into the folder."
    adapter = read_json(folder, "adapter_config.json") or {}
    base = str(adapter.get("base_model_name_or_path") or "")
    if base and (Path(base).is_absolute() or base.startswith((".", "~")) or "\\" in base):
        yield f"the adapter's base is {base!r}, a folder of this machine: others cannot load it. Name its Hub id."
