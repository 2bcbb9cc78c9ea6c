"""A shared prefix on disk: one safetensors file, which names the model and the tokens that it belongs to."""

# G key/value heads, P tokens, D head dim
from __future__ import annotations

import json
import os
import struct
import zlib
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from .layers import Level

FORMAT, VERSION = "hf_longctx.shared_prefix", 1


@dataclass(frozen=True)
class Fingerprint:
    """What determines a prefix's keys besides its tokens."""

    model: str  # hash of the config and of a few values of every weight
    methods: tuple[str, ...]  # of the model when it read


def write_levels(path: Path, fingerprint: Fingerprint, levels: tuple[Level, ...]) -> Path:
    """Write a prefix; the file appears when it is complete. OSError, and an old file is unchanged, if it cannot."""
    path = path.expanduser()
    make_folder(path.parent)
    if path.is_dir():
        raise IsADirectoryError(f"{path} is a folder: expected the name of a file to write the prefix to.")
    tensors: dict[str, Tensor] = {}
    for i, level in enumerate(levels):
        tensors[f"{i}.ids"] = level.ids_N
        for j, (k, v) in enumerate(zip(level.keys, level.values, strict=True)):
            tensors[f"{i}.{j}.keys"], tensors[f"{i}.{j}.values"] = k, v
    tensors = {name: t.detach().cpu().contiguous() for name, t in tensors.items()}
    about = {"version": VERSION, **asdict(fingerprint), "checksum": _checksum(tensors), "levels": len(levels)}
    partial = path.with_name(f".{path.name}.{os.getpid()}.partial")
    try:
        save_file(tensors, partial, metadata={FORMAT: json.dumps(about)})  # one entry: their order is random
        partial.replace(path)
    except SafetensorError as error:  # a full disk, a read-only folder
        raise OSError(f"the prefix could not be written to {path} ({error}). Save it somewhere else.") from error
    finally:
        partial.unlink(missing_ok=True)
    return path


def make_folder(folder: Path) -> None:
    """Make a folder for prefixes, unless it exists; OSError says why not."""
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise type(error)(
            f"{folder}: a folder for prefixes cannot be made here ({error.strerror}). Give one that can be written to."
        ) from error


def read_levels(path: Path, fingerprint: Fingerprint, devices: list[torch.device]) -> tuple[Level, ...]:
    """The levels of a file, every layer on its device.

    ValueError unless it is complete and was written for this model; OSError if it cannot be opened.
    """
    path = path.expanduser()
    if path.is_dir():
        raise IsADirectoryError(f"{path} is a folder: expected a file that prefix.save(path) wrote.")
    if not path.is_file():
        raise FileNotFoundError(f"No prefix at {path}. Write one with prefix.save(path).")
    about, tensors = _contents(path)
    if about.get("version") != VERSION:
        raise ValueError(
            f"{path} is a prefix of version {about.get('version')}, and this release reads version {VERSION}. "
            f"Read the document again and save it."
        )
    _check_header(path, about)
    methods = tuple(about["methods"])
    if methods != fingerprint.methods:
        then, now = (", ".join(each) or "no method" for each in (methods, fingerprint.methods))
        raise ValueError(
            f"{path} was read by a model with {then}, and this one has {now}. Apply the same methods, or read the "
            f"document again."
        )
    if about["model"] != fingerprint.model:
        raise ValueError(
            f"{path} was read by another model (fingerprint {about['model']}; this model's is {fingerprint.model}): "
            f"its keys mean nothing here. Load the model that read it, in the same dtype, or read the document again."
        )
    if about["checksum"] != _checksum(tensors):
        raise _damaged(path, "its checksum is wrong")
    expected = {f"{i}.ids" for i in range(about["levels"])}
    expected |= {
        f"{i}.{j}.{part}" for i in range(about["levels"]) for j in range(len(devices)) for part in ("keys", "values")
    }
    if expected != tensors.keys():
        raise _damaged(path, f"its tensors are not those of {about['levels']} levels of {len(devices)} layers")
    levels: list[Level] = []
    for i in range(about["levels"]):
        keys = tuple(tensors[f"{i}.{j}.keys"].to(device) for j, device in enumerate(devices))
        values = tuple(tensors[f"{i}.{j}.values"].to(device) for j, device in enumerate(devices))
        levels.append(Level(tensors[f"{i}.ids"], levels[-1].end if levels else 0, keys, values))
    return tuple(levels)


def _contents(path: Path) -> tuple[dict[str, Any], dict[str, Tensor]]:
    path.open("rb").close()  # safetensors says of a file without read permission that it does not exist
    try:
        with safe_open(path, framework="pt") as file:
            about = (file.metadata() or {}).get(FORMAT)
            if about is None:
                raise _foreign(path)
            names: Any = file.keys()
            header = json.loads(about)
            if not isinstance(header, dict):
                raise _damaged(path, f"its header describes it by a {type(header).__name__}, not by an object")
            return header, {name: file.get_tensor(name) for name in names}
    except json.JSONDecodeError as error:
        raise _damaged(path, f"its header is no JSON: {error}") from None
    except (SafetensorError, struct.error) as error:
        with path.open("rb") as file:
            is_prefix = FORMAT.encode() in file.read(4096)  # the metadata come first
        raise (_damaged(path, str(error)) if is_prefix else _foreign(path)) from None


def _check_header(path: Path, about: dict[str, Any]) -> None:
    kinds: dict[str, type] = {"model": str, "methods": list, "checksum": str, "levels": int}
    for name, kind in kinds.items():
        if type(about.get(name)) is not kind:
            raise _damaged(path, f"its header has {name}={about.get(name)!r}, expected a value of type {kind.__name__}")
    if about["levels"] < 1:
        raise _damaged(path, f"its header has levels={about['levels']}, expected at least 1")


def _checksum(tensors: dict[str, Tensor]) -> str:
    value = 0
    for name in sorted(tensors):
        tensor = tensors[name]
        value = zlib.crc32(f"{name}{tuple(tensor.shape)}{tensor.dtype}".encode(), value)
        data: Any = tensor.reshape(-1).view(torch.uint8).numpy()  # a buffer, without a copy
        value = zlib.crc32(data, value)
    return f"{value:08x}"


def _foreign(path: Path) -> ValueError:
    return ValueError(f"{path} is no shared prefix: expected a file that prefix.save(path) wrote.")


def _damaged(path: Path, what: str) -> ValueError:
    return ValueError(f"{path} is damaged ({what}). Delete it, read the document again and save it.")
