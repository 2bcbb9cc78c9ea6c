"""A training that is resumed has the settings and the data with which it began."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Collection, Mapping
from pathlib import Path
from typing import Any

from hf_longctx.evaluation.results import write_results
from hf_longctx.storage.files import check_folder
from hf_longctx.training.checkpoints import last_whole
from hf_longctx.training.processes import is_first


def fingerprints(settings: Mapping[str, Any]) -> dict[str, str]:
    """A short hash of every setting."""
    told = {key: json.dumps(value, sort_keys=True).encode() for key, value in settings.items()}
    return {key: hashlib.sha256(value).hexdigest()[:16] for key, value in told.items()}


def keep_settings(out: Path, now: Mapping[str, str], *, resume: bool) -> None:
    """Keep what decides the weights in `out`; a resumed training must have the same.

    Raises:
        ValueError: `out` holds a training and it is not to be resumed, or something has changed since it began.
    """
    check_fresh(out, resume)
    if not resume:
        write_results(out / "settings.json", now)
        return
    last_whole(out / "run")
    check_same(out, now)


def check_same(out: Path, now: Mapping[str, str], *, besides: Collection[str] = ()) -> None:
    """ValueError where anything but `besides` is not as it was when the training in `out` began."""
    was = json.loads((out / "settings.json").read_text(encoding="utf-8"))
    if changed := sorted(key for key in now | was if key not in besides and now.get(key) != was.get(key)):
        raise ValueError(
            f"--resume: {', '.join(changed)} changed since the training in {out} began, so its steps would be "
            f"others. Go on with the settings and documents of then, or begin again in another folder."
        )


def check_fresh(out: Path, resume: bool) -> None:
    """Find what would lose a training, before it begins.

    Raises:
        ValueError: `out` holds another one.
        OSError: It cannot be written.
    """
    if not resume and any((out / "run").glob("checkpoint-*")):
        raise ValueError(f"{out} holds a training. Go on with --resume, or choose another folder.")
    if is_first():  # several at once would remove each other's attempts
        check_folder(out)
