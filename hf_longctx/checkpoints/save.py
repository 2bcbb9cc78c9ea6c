"""Writes a checkpoint whole or not at all."""

from __future__ import annotations

import os
import shutil
import uuid
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase


def save(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    folder: str | os.PathLike[str],
    *,
    overwrite: bool = False,
) -> Path:
    """Save both into `folder`, which appears complete or not at all.

    With `overwrite`, a folder that holds something is written into, and a crash may leave a mixture.

    Raises:
        ValueError: `folder` is a file, or holds something and `overwrite` is not set.
        OSError: the folder cannot be written, or the disk is full.
    """

    def write(target: Path) -> None:
        model.save_pretrained(target)
        tokenizer.save_pretrained(target)

    return save_with(write, folder, sum(tensor.nbytes for tensor in model.parameters()), overwrite=overwrite)


def save_with(
    write: Callable[[Path], object], folder: str | os.PathLike[str], nbytes: int, *, overwrite: bool = False
) -> Path:
    """Let `write` fill a folder that becomes `folder` when it is whole; `nbytes` is what an error says is needed."""
    from safetensors import SafetensorError

    check_target(folder, overwrite=overwrite)
    target = Path(folder).expanduser()
    occupied = target.is_dir() and any(target.iterdir())
    draft: Path | None = None
    try:
        if occupied:
            write(target)
            return target
        target.parent.mkdir(parents=True, exist_ok=True)
        draft = target.parent / f".saving-{uuid.uuid4().hex}"
        draft.mkdir()
        write(draft)
        draft.rename(target)
    except (OSError, SafetensorError) as error:
        number = getattr(error, "errno", None)
        raise OSError(
            *([] if number is None else [number]),
            f"the checkpoint could not be written to {str(target)!r} ({error}); it needs about "
            f"{nbytes / 2**20:,.0f} MiB. Make room or choose another folder",
        ) from error
    finally:
        if draft is not None:
            shutil.rmtree(draft, ignore_errors=True)
    return target


def check_target(folder: str | os.PathLike[str], *, overwrite: bool) -> None:
    """ValueError if `save` would refuse to write into `folder`."""
    target = Path(folder).expanduser()
    if target.exists() and not target.is_dir():
        raise ValueError(f"{str(target)!r} is a file; expected the name of a folder to write the model into.")
    if not overwrite and target.is_dir() and any(target.iterdir()):
        raise ValueError(
            f"{str(target)!r} is not empty. Choose another folder, or overwrite it (--force, overwrite=True)."
        )
