"""The small files of a model, wherever it is: enough to say what it loads as."""

from __future__ import annotations

import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from .outgoing import GENERATE
from .resolve import NO_MODEL, find, first_line, hub_problem, is_gguf, not_found

_SMALL = ("*.json", "*.py", "*.md")


@contextmanager
def small_files(model: str, revision: str | None = None) -> Iterator[Path]:
    """A folder with the configs, code and card of a model: its own, or one with these files of a Hub id.

    Raises:
        ValueError: `revision` is given for a folder, or the model is a GGUF file.
        OSError: The Hub does not give the model.
    """
    location = find(model).location
    if Path(location).is_dir():
        if revision is not None:
            raise ValueError(f"--revision {revision}: {model!r} is a folder. Revisions belong to Hub ids.")
        yield Path(location)
        return
    if is_gguf(location):
        raise ValueError(
            f"{model!r} is a GGUF file, which has no config of hf_longctx and no card. Give a folder or a Hub id; "
            f"`hf-longctx save` makes a folder of it."
        )
    from huggingface_hub import snapshot_download

    if revision is None and (problem := hub_problem(location)):
        raise OSError(not_found(model, problem))
    with tempfile.TemporaryDirectory(prefix="hf-longctx-check-") as place:
        folder = Path(place) / location.rpartition("/")[2]
        try:
            snapshot_download(location, revision=revision, allow_patterns=list(_SMALL), local_dir=folder)
        except (OSError, ValueError) as error:
            if revision is not None and hub_problem(location) is None:
                raise OSError(
                    f"{model!r} is on the Hub, and has no revision {revision!r} that can be read "
                    f"({first_line(error)}). Give one of its branches, tags or commits."
                ) from error
            raise OSError(not_found(model, first_line(error))) from error
        if (folder / GENERATE).is_file() and not (folder / "config.json").is_file():
            raise ValueError(f"{model!r} {NO_MODEL}.")
        yield folder
