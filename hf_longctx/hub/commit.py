"""One commit on a branch of the Hub. Where its answer is lost, the branch itself says whether it was made."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from .answers import UploadError, failures, one_line, status_of, why
from .outgoing import Files

if TYPE_CHECKING:
    from huggingface_hub import CommitOperationAdd, CommitOperationDelete, HfApi
    from huggingface_hub.hf_api import RepoFile


@dataclass(frozen=True)
class Commit:
    """One commit on top of `head`, and what to make of a failure."""

    api: HfApi
    name: str
    branch: str
    head: str
    files: Files
    stale: list[str]
    token: str

    def publish(self, message: str) -> str:
        """Send what is missing and commit.

        `create_commit`, because `upload_folder` makes several commits of a large folder where hf_xet is installed.
        """
        from huggingface_hub import CommitOperationAdd, CommitOperationDelete

        try:
            operations: list[CommitOperationAdd | CommitOperationDelete] = [
                *(CommitOperationDelete(path) for path in self.stale),
                *(CommitOperationAdd(path, str(file)) for path, file in self.files.items()),
            ]
            return self.api.create_commit(
                self.name, operations, commit_message=message, revision=self.branch, parent_commit=self.head
            ).oid
        except KeyboardInterrupt:
            raise KeyboardInterrupt(
                f"interrupted while sending to {self.name}: look there whether the commit was made. The same command "
                f"with --update (update=True) sends only what is missing."
            ) from None
        except failures() as error:
            return self._settle(error)
        except ValueError as error:  # the metadata of README.md, which the Hub checks before anything is sent
            raise ValueError(one_line(f"{self.name}: {error} Nothing was published.", self.token)) from error

    def _settle(self, error: Exception) -> str:
        """The commit if it is on the branch although its answer was lost; else an error that says where things are."""
        reason, status = why(error, self.name), status_of(error)
        again = "Run it again (with --update where the repository has files): only what is missing is sent"
        try:
            now = _head(self.api, self.name, self.branch)
            landed = now != self.head and self._complete(now)
        except failures() as unreachable:
            text = (
                f"{reason}; whether {self.branch} has the commit is unknown, because the Hub does not answer. {again}"
            )
            raise self._error(text) from unreachable
        if landed:
            return now
        if now != self.head or status == 412:
            text = (
                f"{self.branch} has moved on, from commit {self.head[:7]} to {now[:7]}, by someone else's commit. "
                f"None of your files was published. Look at the change, then run it again with --update (update=True)"
            )
            raise self._error(text) from error
        text = f"{reason}. {self.branch} is still at commit {self.head[:7]}, so nothing was published. {again}"
        raise self._error(text) from error

    def _complete(self, commit: str) -> bool:
        there = tree(self.api, self.name, commit)
        return not any(path in there for path in self.stale) and holds(there, self.files)

    def _error(self, text: str) -> UploadError:
        return UploadError(one_line(f"{self.name}: {text}.", self.token))


def _head(api: HfApi, name: str, branch: str) -> str:
    return next(ref.target_commit for ref in api.list_repo_refs(name).branches if ref.name == branch)


def tree(api: HfApi, name: str, commit: str) -> dict[str, RepoFile]:
    """The files of a commit, by their paths."""
    from huggingface_hub.hf_api import RepoFile

    listed = api.list_repo_tree(name, revision=commit, recursive=True)
    return {entry.path: entry for entry in listed if isinstance(entry, RepoFile)}


def holds(there: dict[str, RepoFile], files: Files) -> bool:
    """Whether every file is there with the same content. Nothing is read where a size differs."""
    if any(path not in there or there[path].size != file.stat().st_size for path, file in files.items()):
        return False
    return all(_same(there[path], file) for path, file in files.items())


def _same(there: RepoFile, file: Path) -> bool:
    """Compares the checksums that the Hub lists: sha256 of LFS files, git's own of the others."""
    lfs = there.lfs is not None
    checksum = hashlib.sha256() if lfs else hashlib.sha1(b"blob %d\0" % there.size)
    with file.open("rb") as content:
        while piece := content.read(2**20):
            checksum.update(piece)
    return checksum.hexdigest() == (there.lfs.sha256 if there.lfs is not None else there.blob_id)
