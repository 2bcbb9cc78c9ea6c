"""What a repository will hold, complete in a folder before anything is sent: model, tokenizer, card, code."""

from __future__ import annotations

import logging
import os
import shutil
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from . import shim
from .card import check_base_model, read_results, write_card
from .check import keep_settings, notes_of, refuse_edited, refuse_inconsistent
from .damaged import refuse_damaged
from .outgoing import files_of
from .resolve import find, is_gguf, load
from .save import check_target, save_with
from .tiers import Tier, tier_of
from .unfit import refuse_unfit

if TYPE_CHECKING:
    from ..registry import Recorded

logger = logging.getLogger(__name__)

_PROCESSOR = ("preprocessor_config.json", "processor_config.json", "video_preprocessor_config.json")
_NEVER_SENT = {"__pycache__"}  # beside the folders that `files_of` leaves out


@dataclass(frozen=True)
class Draft:
    """A folder with everything that a repository will have.

    Args:
        folder: The folder.
        tier: What loading it gives.
        own_card: The card was written for the draft; the model had none of its own.
        notes: What its readers should know.
    """

    folder: Path
    tier: Tier
    own_card: bool
    notes: tuple[str, ...] = ()


@contextmanager
def drafted(model: Any, repo_id: str, **options: Any) -> Iterator[Draft]:
    """A draft in a temporary folder, checked as for `push`; files of a folder are linked, not copied."""
    with tempfile.TemporaryDirectory(prefix="hf-longctx-push-") as place:
        yield _draft(model, Path(place) / repo_id.rpartition("/")[2], repo_id, link=True, **options)


def save_for_hub(model: Any, folder: str | os.PathLike[str], *, overwrite: bool = False, **options: Any) -> Draft:
    """What `push` would send, in a folder of its own, which appears complete or not at all.

    Args:
        model: As for `push`.
        folder: The folder.
        overwrite: Write into a folder that is not empty.
        **options: `tokenizer`, `method`, `plugin`, `base_model`, `results` and `files` as for `push`.
    """
    check_target(folder, overwrite=overwrite)  # before a download
    target = Path(folder).expanduser()
    return _draft(model, target, target.name, overwrite=overwrite, **options)


def _draft(
    model: Any,
    target: Path,
    repo_id: str,
    *,
    tokenizer: Any = None,
    method: Recorded | None = None,
    plugin: bool = False,
    base_model: str | None = None,
    results: Sequence[str | Path] = (),
    files: Sequence[str | Path] = (),
    link: bool = False,
    overwrite: bool = False,
) -> Draft:
    read_results(results)  # before the model is loaded
    if base_model is not None:
        check_base_model(base_model)
    named = isinstance(model, (str, os.PathLike))
    source = None
    if not named:
        _check_in_memory(model, tokenizer, method)
    elif (location := find(model).location) and method is None and Path(location).is_dir():
        source = Path(location)
    else:
        base_model = base_model or _hub_id(location)
        logger.info("loading %s", model)
        files = [*files, *_of_processor(location)]
        model, tokenizer = load(location, dtype="checkpoint", device="cpu")
        if method is not None:
            method.store_(model)
    made: list[Draft] = []

    def write(folder: Path) -> None:
        if source is not None:
            _take(source, folder, link)
        else:
            logger.info("saving it")
            model.save_pretrained(folder)
            tokenizer.save_pretrained(folder)
        for path in map(Path, files):
            shutil.copyfile(path, folder / path.name)
        refuse_damaged(files_of(folder))
        refuse_edited(folder)
        shim.finish(folder, dual=not plugin)
        keep_settings(folder)
        refuse_inconsistent(folder)
        own, base = (_names(model), []) if named and method is None else ([], _names(model))
        card = write_card(folder, repo_id, base_model=base_model, results=results, known_as=own, made_from=base)
        if card is None and results:
            raise ValueError(
                "README.md was written or edited by somebody, so it stays and would not show the results. Replace it "
                "with `hf-longctx card DIR --force --results FILE`, or leave the results out."
            )
        refuse_unfit(folder)
        made.append(Draft(target, tier_of(folder), card is not None, tuple(notes_of(folder))))

    save_with(write, target, _size(model if source is None else source), overwrite=overwrite)
    return made[0]


def _names(model: Any) -> list[str]:
    """What a model was called before it was drafted, by which results may name it."""
    name = str(model) if isinstance(model, (str, os.PathLike)) else str(getattr(model, "name_or_path", ""))
    return [Path(name).name if Path(name).is_dir() else name] if name else []


def _hub_id(location: str) -> str | None:
    return location if location.count("/") == 1 and not is_gguf(location) and not Path(location).exists() else None


def _of_processor(location: str) -> list[str]:
    """The files of a vision-language model that its tokenizer does not save, in a folder or the cache of the Hub."""
    from transformers.utils import cached_file

    if is_gguf(location):
        return []
    missing_is_none: dict[str, bool] = dict.fromkeys(
        ("_raise_exceptions_for_missing_entries", "_raise_exceptions_for_connection_errors"), False
    )
    found = [cached_file(location, name, **missing_is_none) for name in _PROCESSOR]
    return [file for file in found if file is not None]


def _check_in_memory(model: Any, tokenizer: Any, method: Recorded | None) -> None:
    if not hasattr(model, "save_pretrained"):
        raise ValueError(
            f"{type(model).__name__}: expected a model, or the name of one: a folder, a Hub id, a .gguf file."
        )
    if tokenizer is None:
        raise ValueError("tokenizer=None: a model in memory is published with its tokenizer. Give tokenizer=...")
    if method is not None:
        raise ValueError(
            f"method={method!r} is for the name of a model. Apply it to a model in memory: method.apply(model)."
        )


def _take(source: Path, folder: Path, link: bool) -> None:
    """Every file of a folder: linked where links can be made, else copied."""
    for name, path in files_of(source).items():
        place = folder / name
        if _NEVER_SENT & set(name.split("/")):
            continue
        place.parent.mkdir(parents=True, exist_ok=True)
        if not (link and _linked(place, path)):
            shutil.copyfile(path, place)


def _linked(place: Path, path: Path) -> bool:
    try:
        place.symlink_to(path.resolve())
    except (OSError, NotImplementedError):  # Windows lets few users make links
        return False
    return True


def _size(model: Any) -> int:
    """The bytes that it will take, for the message about a full disk."""
    if isinstance(model, Path):
        return sum(path.stat().st_size for path in files_of(model).values())
    return sum(tensor.nbytes for tensor in model.parameters())
