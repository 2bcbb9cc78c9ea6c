"""What a folder would send to the Hub, as a list. No request is made here."""

from __future__ import annotations

import os
from fnmatch import fnmatch
from pathlib import Path
from typing import NamedTuple

LFS_SIZE = (
    10 * 2**20
)  # https://huggingface.co/docs/hub/repositories-storage: what is larger goes to LFS, whatever its name
# the .gitattributes that the Hub puts into a new model repository
LFS_NAMES = (
    *("*.7z", "*.arrow", "*.bin", "*.bz2", "*.ckpt", "*.ftz", "*.gz", "*.h5", "*.joblib", "*.lfs.*", "*.mlmodel"),
    *("*.model", "*.msgpack", "*.npy", "*.npz", "*.onnx", "*.ot", "*.parquet", "*.pb", "*.pickle", "*.pkl", "*.pt"),
    *("*.pth", "*.rar", "*.safetensors", "*.tar", "*.tar.*", "*.tflite", "*.tgz", "*.wasm", "*.xz", "*.zip", "*.zst"),
    "*tfevents*",
)
MODEL = ("config.json", "adapter_config.json")  # a folder with one of these holds a model or an adapter
GENERATE = "custom_generate/generate.py"  # and one with this and none of them a way to generate
WEIGHTS = r"(adapter_)?model([.-][\w.-]+)?\.safetensors"
INDEX = r"\.index\.json"
_SKIPPED = {".git", ".cache"}  # folders that huggingface_hub refuses to commit
Files = dict[str, Path]
"""Path in the repository -> the file on this computer."""


class Planned(NamedTuple):
    """A file that would be sent, and whether the Hub stores it as LFS."""

    path: str
    size: int
    lfs: bool


def files_of(folder: str | os.PathLike[str]) -> Files:
    """The files of a folder at all levels, except `.git` and `.cache`, which never go to the Hub.

    Raises:
        ValueError: There is no such folder, or a link in it leads to nothing or to a folder.
    """
    root = Path(folder).expanduser()
    if not root.is_dir():
        raise ValueError(f"{str(folder)!r} is not a folder. Give the folder of a saved model.")
    found = {file.relative_to(root).as_posix(): file for file in sorted(root.rglob("*"))}
    found = {path: file for path, file in found.items() if _SKIPPED.isdisjoint(path.split("/"))}
    for path, file in found.items():
        if file.is_symlink() and not file.is_file():
            what = "a folder, and such links are not followed" if file.is_dir() else "a file that is not there"
            raise ValueError(f"{path} is a link to {what}. Put a copy in its place, or remove it.")
    return {path: file for path, file in found.items() if file.is_file()}


def planned(folder: str | os.PathLike[str]) -> list[Planned]:
    """What `upload` would send, by the rule for a new repository. Works offline."""
    sizes = {path: file.stat().st_size for path, file in files_of(folder).items()}
    return [Planned(path, size, _is_lfs(path, size)) for path, size in sizes.items()]


def _is_lfs(path: str, size: int) -> bool:
    name = path.rsplit("/", 1)[-1]
    by_name = any(fnmatch(name, pattern) for pattern in LFS_NAMES) or path.startswith("saved_model/")
    return size > 0 and (by_name or size > LFS_SIZE)  # the client sends empty files to git
