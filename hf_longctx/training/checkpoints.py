"""Checkpoints of a Trainer that is started again."""

from __future__ import annotations

import json
import logging
from pathlib import Path

from transformers.trainer import TRAINER_STATE_NAME
from transformers.trainer_utils import PREFIX_CHECKPOINT_DIR

logger = logging.getLogger("hf_longctx")


def last_whole(folder: str | Path) -> str:
    """The last checkpoint in a folder that was saved to its end; one that was interrupted is left out, and said.

    Raises:
        ValueError: There is none.
    """
    found = [path for path in Path(folder).glob(f"{PREFIX_CHECKPOINT_DIR}-*") if _step(path) is not None]
    for path in sorted(found, key=lambda path: _step(path) or 0, reverse=True):
        if _is_whole(path):
            return str(path)
        logger.warning("%s was interrupted while it was saved, and is left out.", path)
    raise ValueError(
        f"resume_from_checkpoint=True: expected a whole {PREFIX_CHECKPOINT_DIR}-STEP folder in {folder}, and found "
        f"{', '.join(path.name for path in found) or 'none'}. Start without it."
    )


def _step(path: Path) -> int | None:
    digits = path.name.removeprefix(f"{PREFIX_CHECKPOINT_DIR}-")
    return int(digits) if digits.isdecimal() else None


def _is_whole(path: Path) -> bool:
    """Trainer writes its state last."""
    try:
        json.loads((path / TRAINER_STATE_NAME).read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return False
    return True
