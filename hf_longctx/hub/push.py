"""From a model to its repository on the Hub, complete before anything is sent: one folder, one commit."""

from __future__ import annotations

import os
import shutil
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from . import shim
from .card import is_unedited, write_card
from .check import keep_settings, refuse_edited, refuse_inconsistent
from .resolve import find, is_gguf, load
from .save import check_target, save_with
from .tiers import Tier, tier_of
from .upload import Uploaded, check_access, check_names, refuse_unfit, upload

if TYPE_CHECKING:
    from ..registry import Recorded

_NEVER_SENT = {".git", ".cache", "__pycache__"}


@dataclass(frozen=True)
class Draft:
    """A folder with everything that a repository will have.

    Args:
        folder: The folder.
        tier: What loading it gives.
        own_card: The card was written for the draft; the model had none of its own.
    """

    folder: Path
    tier: Tier
    own_card: bool


def push(
    model: Any,
    repo_id: str,
    *,
    tokenizer: Any = None,
    method: Recorded | None = None,
    plugin: bool = False,
    base_model: str | None = None,
    results: Sequence[str | Path] = (),
    files: Sequence[str | Path] = (),
    private: bool = False,
    revision: str | None = None,
    message: str | None = None,
    tag: str | None = None,
    update: bool = False,
    token: str | None = None,
) -> Uploaded:
    """Publish a model with its tokenizer and a card, in one commit.

    What transformers can express by itself (RoPE scaling, merged weights, stretched tables) loads everywhere. A model
    with attention methods becomes a dual-mode repository: the stock model by default, the extended one with
    `trust_remote_code=True` or once hf_longctx is imported.

    Args:
        model: A model in memory, with its methods applied; or the name of one: a folder, which is sent as it is without
            loading it, a Hub id, a `.gguf` file. A PEFT model or folder is published as an adapter.
        repo_id: `owner/name` on the Hub.
        tokenizer: The tokenizer or processor of a model in memory.
        method: A method or procedure for a model that is given by name.
        plugin: No code in the repository: only readers who import hf_longctx get the extended model.
        base_model: The Hub id of the model that it was made from, for the card.
        results: Files of results for the card, see `card.write_card`.
        files: More files for the repository.
        private: Make a new repository private.
        revision: The branch, made from `main` if there is none; `main` by default.
        message: The commit's first line.
        tag: A tag for the commit.
        update: Commit to a repository that exists. Its card stays, unless the model has one of its own.
        token: A token with the right to write; the one of `hf auth login` by default.

    Returns:
        Where it is.

    Raises:
        ValueError: The model is not fit to be published, or a name is wrong; nothing was sent.
        OSError: The Hub refused it or could not be reached; the message says whether anything was published.
    """
    check_names(repo_id, revision, tag)
    check_access(token)
    with drafted(
        model, repo_id, tokenizer=tokenizer, method=method, plugin=plugin, base_model=base_model, results=results,
        files=files,
    ) as draft:  # fmt: skip
        return send(
            draft, repo_id, private=private, revision=revision, message=message, tag=tag, update=update, token=token
        )


def send(draft: Draft, repo_id: str, *, update: bool = False, **options: Any) -> Uploaded:
    """`upload` a draft. A card that someone has written in the repository stays, unless the model has its own."""
    keep = ("README.md",) if draft.own_card and update and _has_card(repo_id, options) else ()
    return upload(draft.folder, repo_id, update=update, keep=keep, **options)


def _has_card(repo_id: str, options: dict[str, Any]) -> bool:
    """Whether the repository has a card that is not just one of ours; what cannot be read is taken for one."""
    from huggingface_hub import hf_hub_download
    from huggingface_hub.errors import EntryNotFoundError, RepositoryNotFoundError

    try:
        path = hf_hub_download(repo_id, "README.md", revision=options.get("revision"), token=options.get("token"))
    except (EntryNotFoundError, RepositoryNotFoundError):
        return False
    except Exception:  # `upload` says what it is
        return True
    return not is_unedited(Path(path).read_text(encoding="utf-8", errors="replace"))


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
    named = isinstance(model, (str, os.PathLike))
    source = _folder_of(model) if named and method is None else None
    if not named:
        _check_in_memory(model, tokenizer, method)
    elif source is None:
        base_model = base_model or _hub_id(model)
        model, tokenizer = load(model, dtype="checkpoint", device="cpu")
        if method is not None:
            method.store_(model)
    made: list[Draft] = []

    def write(folder: Path) -> None:
        if source is not None:
            _take(source, folder, link)
        else:
            model.save_pretrained(folder)
            tokenizer.save_pretrained(folder)
        for path in map(Path, files):
            shutil.copyfile(path, folder / path.name)
        refuse_edited(folder)
        shim.finish(folder, dual=not plugin)
        keep_settings(folder)
        refuse_inconsistent(folder)
        own_card = write_card(folder, repo_id, base_model=base_model, results=results)
        refuse_unfit(folder)
        made.append(Draft(target, tier_of(folder), own_card))

    save_with(write, target, _size(model if source is None else source), overwrite=overwrite)
    return made[0]


def _folder_of(name: str | os.PathLike[str]) -> Path | None:
    """The folder that a name is of."""
    location = Path(find(name).location)
    return location if location.is_dir() else None


def _hub_id(name: str | os.PathLike[str]) -> str | None:
    found = find(name).location
    return found if found.count("/") == 1 and not is_gguf(found) and not Path(found).exists() else None


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
    for path in sorted(source.rglob("*")):
        place = folder / path.relative_to(source)
        if not path.is_file() or _NEVER_SENT & set(path.relative_to(source).parts):
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
        return sum(path.stat().st_size for path in model.rglob("*") if path.is_file())
    return sum(tensor.nbytes for tensor in model.parameters())
