"""Writes a checkpoint whole or not at all."""

from __future__ import annotations

import os
import shutil
import uuid
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
    from safetensors import SafetensorError

    check_target(folder, overwrite=overwrite)
    target = Path(folder).expanduser()
    occupied = target.is_dir() and any(target.iterdir())
    draft: Path | None = None
    try:
        if occupied:
            _write(model, tokenizer, target)
            return target
        target.parent.mkdir(parents=True, exist_ok=True)
        draft = target.parent / f".saving-{uuid.uuid4().hex}"
        draft.mkdir()
        _write(model, tokenizer, draft)
        draft.rename(target)
    except (OSError, SafetensorError) as error:
        need = sum(tensor.nbytes for tensor in model.parameters()) / 2**20
        number = getattr(error, "errno", None)
        raise OSError(
            *([] if number is None else [number]),
            f"the checkpoint could not be written to {str(target)!r} ({error}); it needs about {need:,.0f} MiB. "
            f"Make room or choose another folder",
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


def _write(model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, folder: Path) -> None:
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
