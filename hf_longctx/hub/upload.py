"""A finished folder becomes one commit of a Hub repository, or one line says why it did not."""

from __future__ import annotations

import logging
import os
import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from ..console.units import show_bytes
from ..storage.secrets import TOKEN
from . import shim
from .answers import UploadError, failures, one_line, why
from .commit import Commit, holds, tree
from .outgoing import GENERATE, INDEX, MODEL, WEIGHTS, Files, files_of, planned
from .tokens import token_for, token_from
from .unfit import refuse_unfit

if TYPE_CHECKING:
    from huggingface_hub import HfApi

logger = logging.getLogger(__name__)

__all__ = [
    "UploadError",
    "Uploaded",
    "check_access",
    "check_names",
    "check_owner",
    "planned",
    "refuse_unfit",
    "token_from",
    "upload",
]

# what transformers loads from the root of a repository in place of, or on top of, the new model's own files
_LOADED_INSTEAD = re.compile(rf"{WEIGHTS}({INDEX})?|adapter_config\.json|{re.escape(shim.FILE)}")
_REF = re.compile(r"(?!refs/|[0-9a-f]{40}$)\w[\w./+-]*")
_KINDS = {"revision": "branch", "tag": "tag"}
_EMPTY = {".gitattributes"}  # the files of a repository into which nothing was ever uploaded


@dataclass(frozen=True)
class Uploaded:
    """What is on the Hub after `upload`."""

    repo_id: str
    url: str
    commit: str
    revision: str
    tag: str | None = None
    unchanged: bool = False  # the branch held exactly these files before, so there is no new commit
    deleted: tuple[str, ...] = ()


def upload(
    folder: str | os.PathLike[str],
    repo_id: str,
    *,
    revision: str | None = None,
    private: bool = False,
    message: str | None = None,
    tag: str | None = None,
    update: bool = False,
    keep: Sequence[str] = (),
    token: str | None = None,
) -> Uploaded:
    """Publish a folder, with all of its levels, as one commit.

    Args:
        folder: A saved model, with everything that is to be published. `refuse_unfit` looks at it first.
        repo_id: `owner/name`; a name alone is put under the user of the token. The repository is created if needed.
        revision: The branch, made from main where it does not exist; main by default.
        private: Readable with a token only. A repository that is public already is refused.
        message: Title of the commit.
        tag: Name for the new commit, not in use yet.
        update: Allow a repository that has files. Those that would be loaded in place of the new ones are deleted in
            the same commit; others stay.
        keep: Files that stay as they are where the repository has them.
        token: In place of the one that huggingface_hub finds by itself.

    Raises:
        ValueError: The folder or a name cannot be used, or the repository has files and `update` is not set.
        UploadError: The Hub refused it or cannot be reached. The branch is as before, or the message says otherwise.
    """
    refuse_unfit(folder)
    files = files_of(folder)
    check_names(repo_id, revision, tag, message)
    token = token_for(token)

    from huggingface_hub import HfApi

    api = HfApi(token=token)
    branch = revision or "main"
    try:
        name = named(repo_id, "" if "/" in repo_id else api.whoami()["name"])
        new = _create(api, name, private, update)
        heads, tags = _refs(api, name)
        head = heads.get(branch) or heads["main"]
        there = {} if new else tree(api, name, head)
        files = {path: file for path, file in files.items() if path not in keep or path not in there}
        _check_kind(name, there, files)
        stale = [path for path in there if path not in files and _LOADED_INSTEAD.fullmatch(path)]
        unchanged = not stale and holds(there, files)
        _check_refs(name, branch, heads, tag, tags, head if unchanged else None)
        if branch not in heads:
            api.create_branch(name, branch=branch, revision=head)
    except failures() as error:
        raise UploadError(one_line(f"{repo_id}: {why(error, repo_id)}. Nothing was published.", token)) from error

    commit = head
    if not unchanged:
        sizes = [file.stat().st_size for file in files.values()]
        logger.info("sending %d files, %s, as one commit", len(sizes), show_bytes(sum(sizes)))
        commit = Commit(api, name, branch, head, files, stale, token).publish(message or "Upload with hf_longctx")
    if tag is not None and tag not in tags:
        _tag(api, name, tag, branch, commit, token)
    url = f"{api.endpoint}/{name}" + ("" if branch == "main" else f"/tree/{branch}")
    return Uploaded(name, url, commit, branch, tag, unchanged, tuple(stale))


def check_access(token: str | None = None) -> str:
    """Ask the Hub whether the token is valid, before a long preparation, and return its user. One request.

    Raises:
        UploadError: There is none, or the Hub refuses it or cannot be reached.
    """
    token = token_for(token)

    from huggingface_hub import HfApi

    try:
        return str(HfApi(token=token).whoami()["name"])
    except failures() as error:
        raise UploadError(one_line(f"{why(error, 'the token')}. Nothing was published.", token)) from error


def named(repo_id: str, user: str) -> str:
    """`owner/name` of a name alone, which is put under the user of the token."""
    return repo_id if "/" in repo_id else f"{user}/{repo_id}"


def check_owner(repo_id: str, why: str) -> None:
    """ValueError for a name alone, where nobody asks the Hub under whose user it would be put."""
    if "/" not in repo_id:
        raise ValueError(f"{repo_id!r} has no owner, {why}. Give OWNER/NAME, such as 'you/{repo_id}'.")


def check_names(repo_id: str, revision: str | None = None, tag: str | None = None, message: str | None = None) -> None:
    """ValueError if one of them cannot be a repository, a branch or a tag, or if it holds a token."""
    if any(TOKEN.search(text) for text in (repo_id, revision, tag, message) if text):
        raise ValueError("a name or the message holds a token (hf_...), which would be public. Leave it out.")
    from huggingface_hub.errors import HFValidationError
    from huggingface_hub.utils import validate_repo_id

    try:
        validate_repo_id(repo_id)
    except HFValidationError as error:
        raise ValueError(
            f"{repo_id!r} cannot be a repository: expected owner/name, of letters, digits, '-', '_' and '.', at most "
            f"96 characters, such as 'you/model'."
        ) from error
    for option, name in (("revision", revision), ("tag", tag)):
        if name is not None and (not _REF.fullmatch(name) or ".." in name):
            raise ValueError(
                f"{option}={name!r} cannot be the name of a {_KINDS[option]}. Use letters, digits, . _ and -."
            )


def _create(api: HfApi, name: str, private: bool, update: bool) -> bool:
    """Whether the repository was created now; one that an upload left empty may be used again."""
    from huggingface_hub.errors import HfHubHTTPError

    try:
        api.create_repo(name, private=private or None)  # None: public, unless the organization's default is private
        return True
    except HfHubHTTPError as error:
        if error.response.status_code != 409:
            raise
    info = api.model_info(name)
    empty = {file.rfilename for file in info.siblings or []} <= _EMPTY
    if not empty and not update:
        raise ValueError(f"{name} exists already. Choose another name, or replace its model: --update (update=True).")
    if private and not info.private:
        raise ValueError(f"{name} exists and is public. Make it private in its settings, or leave out --private.")
    return False


def _check_kind(name: str, there: Iterable[str], files: Files) -> None:
    has_model, had_model = (not set(MODEL).isdisjoint(paths) for paths in (files, there))
    if has_model and GENERATE in set(there) - files.keys():
        raise ValueError(
            f"{name} has {GENERATE}, which would take the place of every `generate` of the model. Choose another "
            f"repository for the model, or delete that file there."
        )
    if had_model and not has_model:
        raise ValueError(
            f"{name} holds a model, where custom_generate/ would take the place of every `generate` of it. Choose a "
            f"repository of its own."
        )


def _refs(api: HfApi, name: str) -> tuple[dict[str, str], dict[str, str]]:
    """Branches and tags, with their commits."""
    refs = api.list_repo_refs(name)
    heads = {ref.name: ref.target_commit for ref in refs.branches}
    return heads, {ref.name: ref.target_commit for ref in refs.tags}


def _check_refs(
    name: str, branch: str, heads: dict[str, str], tag: str | None, tags: dict[str, str], commit: str | None
) -> None:
    """`commit` is the one that will have the tag, None if it is still to be made."""
    if branch not in heads and branch in tags:
        raise ValueError(f"revision={branch!r} is a tag of {name}, which does not move. Give the name of a branch.")
    if tag in tags and tags[tag] != commit:
        raise ValueError(f"tag={tag!r}: {name} has a tag of this name, on another commit. Choose another name.")


def _tag(api: HfApi, name: str, tag: str, branch: str, commit: str, token: str) -> None:
    try:
        api.create_tag(name, tag=tag, revision=commit)
    except failures() as error:
        text = (
            f"{name}: commit {commit[:7]} is published on {branch}, but the tag {tag!r} was not made: "
            f"{why(error, name)}. Run it again with --update (update=True), which then makes the tag alone."
        )
        raise UploadError(one_line(text, token)) from error
