"""Writes a checkpoint whole or not at all."""

from __future__ import annotations

import os
import re
import shutil
import uuid
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING

from ..storage.files import advice, check_folder
from .shim import FILE, finish
from .tiers import is_adapter

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase


# the names that save_pretrained gives weights: one file, or parts with an index
_WEIGHTS = re.compile(r"model(-\d+-of-\d+)?\.safetensors(\.index\.json)?")
# what from_pretrained puts on top of a model, whatever its base is, where it lies beside it
_ADAPTER = re.compile(r"adapter_config\.json|adapter_model\.(safetensors|bin)")


def save(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    folder: str | os.PathLike[str],
    *,
    overwrite: bool = False,
    plugin: bool = False,
) -> Path:
    """Save both into `folder`, which appears complete or not at all.

    A model with methods becomes a dual-mode folder (`shim.py`): the stock model by default, and the extended one with
    `trust_remote_code=True` or once hf_longctx is imported. `plugin` leaves the first way out. With `overwrite`, files
    of a folder that holds something are replaced when all new ones are on disk.

    Raises:
        ValueError: `folder` is a file, or holds something and `overwrite` is not set; or an adapter would be saved over
            a model.
        OSError: The folder cannot be written, or the disk is full.
    """

    def write(target: Path) -> None:
        model.save_pretrained(target)
        tokenizer.save_pretrained(target)
        finish(target, dual=not plugin)

    return save_with(write, folder, sum(tensor.nbytes for tensor in model.parameters()), overwrite=overwrite)


def save_with(
    write: Callable[[Path], object], folder: str | os.PathLike[str], nbytes: int, *, overwrite: bool = False
) -> Path:
    """Let `write` fill a folder that becomes `folder` when it is whole; `nbytes` is the size that an error names."""
    from safetensors import SafetensorError

    check_target(folder, overwrite=overwrite)
    target = _place(folder)
    # nothing can be renamed to where another file system is mounted, such as the volume of a container
    occupied = target.is_dir() and (any(target.iterdir()) or os.path.ismount(target))
    draft: Path | None = None
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        # beside a new folder, to be renamed to it; inside an existing one, which may be on another disk
        draft = (target if occupied else target.parent) / f".saving-{uuid.uuid4().hex}"
        draft.mkdir()
        write(draft)
        if occupied:
            _move(draft, target)
        else:
            draft.rename(target)
    except (OSError, SafetensorError) as error:
        number = getattr(error, "errno", None)
        todo = advice(error) if isinstance(error, OSError) else "Make room or choose another folder"
        raise OSError(
            *([] if number is None else [number]),
            f"the checkpoint could not be written to {os.fspath(folder)!r} ({error}); it needs about "
            f"{nbytes / 2**20:,.0f} MiB. {todo}",
        ) from error
    finally:
        if draft is not None:
            shutil.rmtree(draft, ignore_errors=True)
    return Path(folder).expanduser()


def _place(folder: str | os.PathLike[str]) -> Path:
    """Where a folder is that may be a link, as to a larger disk: a folder cannot be renamed to a link."""
    return Path(os.path.realpath(Path(folder).expanduser()))


def _move(draft: Path, target: Path) -> None:
    """Replace files by those of a draft, and remove weights and code that would be loaded beside them.

    Raises:
        ValueError: An adapter would lie beside a model that it is not of. Nothing was replaced.
    """
    new = [file.relative_to(draft) for file in draft.rglob("*") if file.is_file()]
    if is_adapter(draft) and (target / "config.json").exists():
        raise ValueError(
            f"{str(target)!r} holds a model, beside which an adapter would not be seen. Choose another folder."
        )
    for name in new:
        (target / name).parent.mkdir(parents=True, exist_ok=True)
        os.replace(draft / name, target / name)
    if any(_WEIGHTS.fullmatch(name.name) for name in new):
        for file in target.iterdir():
            instead = _WEIGHTS.fullmatch(file.name) or _ADAPTER.fullmatch(file.name) or file.name == FILE
            if instead and Path(file.name) not in new:
                file.unlink()


def check_target(folder: str | os.PathLike[str], *, overwrite: bool) -> None:
    """ValueError if `save` would refuse to write into `folder`, OSError if nothing can be written there."""
    target = _place(folder)
    if target.exists() and not target.is_dir():
        raise ValueError(f"{os.fspath(folder)!r} is a file; expected the name of a folder to write the model into.")
    if not overwrite and target.is_dir() and any(target.iterdir()):
        raise ValueError(
            f"{os.fspath(folder)!r} is not empty. Choose another folder, or overwrite it (--force, overwrite=True)."
        )
    # where it will be created: for a moment, other code might take the folder itself for a checkpoint
    check_folder(target if target.is_dir() else target.parent)
