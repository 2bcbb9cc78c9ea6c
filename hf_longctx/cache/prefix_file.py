"""A shared prefix on disk: one safetensors file, which names the model and the tokens that it is good for."""

# G key/value heads, P tokens, D head dim
from __future__ import annotations

import json
import os
import struct
import zlib
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from .shared_layers import Level

FORMAT, VERSION = "hf_longctx.shared_prefix", 1


@dataclass(frozen=True)
class Fingerprint:
    """What a prefix's keys follow from, besides its tokens."""

    model: str  # hash of the config and of a few values of every weight
    methods: tuple[str, ...]  # those that the model carried


def write_levels(path: Path, fingerprint: Fingerprint, levels: tuple[Level, ...]) -> Path:
    """Write a prefix; the file appears when it is whole."""
    tensors: dict[str, Tensor] = {}
    for i, level in enumerate(levels):
        tensors[f"{i}.ids"] = level.ids_N
        for j, (k, v) in enumerate(zip(level.keys, level.values, strict=True)):
            tensors[f"{i}.{j}.keys"], tensors[f"{i}.{j}.values"] = k, v
    tensors = {name: t.detach().cpu().contiguous() for name, t in tensors.items()}
    about = {
        "version": VERSION,
        "model": fingerprint.model,
        "methods": fingerprint.methods,
        "checksum": _checksum(tensors),
        "levels": len(levels),
    }
    path = path.expanduser()
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_name(f".{path.name}.{os.getpid()}.partial")
    try:
        save_file(tensors, partial, metadata={FORMAT: json.dumps(about)})  # one entry: their order is random
        partial.replace(path)
    finally:
        partial.unlink(missing_ok=True)
    return path


def read_levels(path: Path, fingerprint: Fingerprint, places: list[torch.device]) -> tuple[Level, ...]:
    """The levels of a file, every layer on its place. ValueError unless it was written for this very model."""
    path = path.expanduser()
    if not path.is_file():
        raise FileNotFoundError(f"No prefix at {path}. Write one with prefix.save(path).")
    about, tensors = _contents(path)
    if about.get("version") != VERSION:
        raise ValueError(
            f"{path} is a prefix of version {about.get('version')}, and this release reads version {VERSION}. "
            f"Read the document again and save it."
        )
    methods = tuple(about["methods"])
    if methods != fingerprint.methods:
        raise ValueError(
            f"{path} was read by a model with {_named(methods)}, and this one has {_named(fingerprint.methods)}. Apply "
            f"the same methods, or read the document again."
        )
    if about["model"] != fingerprint.model:
        raise ValueError(
            f"{path} was read by another model (fingerprint {about['model']}; this model's is {fingerprint.model}): "
            f"its keys mean nothing here. Load the model that read it, in the same dtype, or read the document again."
        )
    if about["checksum"] != _checksum(tensors):
        raise _damaged(path, "its checksum is wrong")
    levels: list[Level] = []
    for i in range(about["levels"]):
        keys = tuple(tensors[f"{i}.{j}.keys"].to(place) for j, place in enumerate(places))
        values = tuple(tensors[f"{i}.{j}.values"].to(place) for j, place in enumerate(places))
        levels.append(Level(tensors[f"{i}.ids"], levels[-1].end if levels else 0, keys, values))
    return tuple(levels)


def _contents(path: Path) -> tuple[dict[str, Any], dict[str, Tensor]]:
    try:
        with safe_open(path, framework="pt") as file:
            about = (file.metadata() or {}).get(FORMAT)
            if about is None:
                raise _foreign(path)
            names: Any = file.keys()
            return json.loads(about), {name: file.get_tensor(name) for name in names}
    except (SafetensorError, struct.error) as error:
        if not _ours(path):
            raise _foreign(path) from None
        raise _damaged(path, str(error)) from None


def _checksum(tensors: dict[str, Tensor]) -> str:
    value = 0
    for name in sorted(tensors):
        tensor = tensors[name]
        value = zlib.crc32(f"{name}{tuple(tensor.shape)}{tensor.dtype}".encode(), value)
        data: Any = tensor.reshape(-1).view(torch.uint8).numpy()  # a buffer, without a copy
        value = zlib.crc32(data, value)
    return f"{value:08x}"


def _named(methods: tuple[str, ...]) -> str:
    return ", ".join(methods) or "no method"


def _ours(path: Path) -> bool:
    """Does a file that cannot be read begin as ours do, with the metadata in its header?"""
    with path.open("rb") as file:
        return FORMAT.encode() in file.read(4096)


def _foreign(path: Path) -> ValueError:
    return ValueError(f"{path} is no shared prefix: expected a file that prefix.save(path) wrote.")


def _damaged(path: Path, what: str) -> ValueError:
    return ValueError(f"{path} is damaged ({what}). Delete it, read the document again and save it.")
