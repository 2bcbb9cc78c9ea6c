"""The repositories of the Hub for tests: files, commits, branches and tags, all in memory."""

from __future__ import annotations

import base64
import hashlib
import json
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

LFS_SIZE = 10 * 2**20  # larger files go to LFS whatever they are called
LFS_ENDINGS = (".safetensors", ".bin", ".pt", ".pth", ".gguf", ".h5", ".model", ".msgpack", ".npz", ".onnx", ".png")
DATE = "2026-11-28T00:00:00.000Z"


class Conflict(Exception):
    """The branch is no longer where the client believes it to be."""


class Missing(Exception):
    """A commit names an LFS object that was never uploaded."""


@dataclass(frozen=True)
class File:
    """The content of a file, and whether git holds it or a pointer to it."""

    data: bytes
    lfs: bool = False

    @property
    def sha256(self) -> str:
        return hashlib.sha256(self.data).hexdigest()

    @property
    def blob(self) -> str:
        """The name that git gives the content, or the pointer."""
        pointer = f"version https://git-lfs.github.com/spec/v1\noid sha256:{self.sha256}\nsize {len(self.data)}\n"
        held = pointer.encode() if self.lfs else self.data
        return hashlib.sha1(b"blob %d\0" % len(held) + held).hexdigest()

    @property
    def oid(self) -> str:
        """What a client compares its own file with, to see that it need not be sent."""
        return self.sha256 if self.lfs else self.blob

    def entry(self, path: str) -> dict[str, Any]:
        """The file as `tree` and `paths-info` list it."""
        size = len(self.data)
        lfs = {"lfs": {"oid": self.sha256, "size": size, "pointerSize": 134}} if self.lfs else {}
        return {"type": "file", "path": path, "oid": self.blob, "size": size, **lfs}

    def sibling(self, path: str) -> dict[str, Any]:
        """The file as the description of a model lists it."""
        size = len(self.data)
        lfs = {"lfs": {"sha256": self.sha256, "size": size, "pointerSize": 134}} if self.lfs else {}
        return {"rfilename": path, "size": size, "blobId": self.blob, **lfs}


@dataclass(frozen=True)
class Commit:
    """One state of a repository: all of its files, and the commit before it."""

    oid: str
    title: str
    files: dict[str, File]
    parent: str | None = None

    def inside(self, folder: str) -> bool:
        """Whether the folder exists; the root, which is "", always does."""
        return not folder or any(path.startswith(f"{folder}/") for path in self.files)

    def tree(self, folder: str, recursive: bool) -> list[dict[str, Any]]:
        """The entries of a folder, those of the folders in it as well where `recursive`."""
        before = f"{folder}/" if folder else ""
        files, folders = [], set()
        for path, file in sorted(self.files.items()):
            if not path.startswith(before):
                continue
            parts = path.removeprefix(before).split("/")
            if recursive or len(parts) == 1:
                files.append(file.entry(path))
            folders |= {before + "/".join(parts[:i]) for i in range(1, len(parts)) if recursive or i == 1}
        return [{"type": "directory", "path": name, "oid": "0" * 40, "size": 0} for name in sorted(folders)] + files


@dataclass
class Repository:
    """A model repository. A commit is whole or not at all, as on the Hub."""

    name: str
    private: bool = False
    branches: dict[str, str] = field(default_factory=dict)
    tags: dict[str, str] = field(default_factory=dict)
    commits: dict[str, Commit] = field(default_factory=dict)

    def __post_init__(self) -> None:
        rules = b"".join(b"*%s filter=lfs diff=lfs merge=lfs -text\n" % ending.encode() for ending in LFS_ENDINGS)
        self.commit("main", "initial commit", {".gitattributes": File(rules)})

    def find(self, revision: str) -> Commit | None:
        """The commit that a branch, a tag, or a commit id of at least 7 digits names."""
        oid = self.branches.get(revision) or self.tags.get(revision) or revision
        if oid in self.commits:
            return self.commits[oid]
        near = [commit for known, commit in self.commits.items() if len(oid) >= 7 and known.startswith(oid)]
        return near[0] if near else None

    def at(self, revision: str) -> Commit:
        """What `find` finds, for tests: an unknown revision is an error."""
        commit = self.find(revision)
        assert commit is not None, f"{self.name} has no revision {revision!r}"
        return commit

    def commit(self, branch: str, title: str, files: dict[str, File]) -> Commit:
        """Move the branch to a new commit that has exactly these files."""
        parent = self.branches.get(branch)
        content = sorted((path, file.blob) for path, file in files.items())
        oid = hashlib.sha1(repr((self.name, title, parent, len(self.commits), content)).encode()).hexdigest()
        self.commits[oid] = Commit(oid, title, dict(files), parent)
        self.branches[branch] = oid
        return self.commits[oid]

    def commit_lines(self, branch: str, lines: bytes, objects: dict[str, bytes]) -> Commit:
        """The commit that a client sends, one JSON object a line: a header, files, LFS pointers and deletions."""
        head = self.at(branch)
        files, title = dict(head.files), ""
        for key, value in ((item["key"], item["value"]) for item in map(json.loads, lines.splitlines())):
            if key == "header":
                title = value["summary"]
                if value.get("parentCommit") and not head.oid.startswith(value["parentCommit"]):
                    raise Conflict
            elif key == "file":
                files[value["path"]] = File(base64.b64decode(value["content"]))
            elif key == "lfsFile":
                if value["oid"] not in objects:
                    raise Missing(value["path"])
                files[value["path"]] = File(objects[value["oid"]], lfs=True)
            elif key == "deletedFile":
                files.pop(value["path"], None)
            elif key == "deletedFolder":
                inside = value["path"].rstrip("/") + "/"
                files = {path: file for path, file in files.items() if not path.startswith(inside)}
        return self.commit(branch, title, files)

    def history(self, commit: Commit | None) -> Iterator[Commit]:
        """The commit and those before it, newest first."""
        while commit is not None:
            yield commit
            commit = self.commits[commit.parent] if commit.parent else None

    def preupload(self, head: Commit, files: list[dict[str, Any]]) -> list[dict[str, Any]]:
        """How each file is to be sent, and what the repository has of that path."""
        return [
            {
                "path": file["path"],
                "uploadMode": "lfs" if file["path"].endswith(LFS_ENDINGS) or file["size"] > LFS_SIZE else "regular",
                "shouldIgnore": False,
                "oid": head.files[file["path"]].oid if file["path"] in head.files else None,
            }
            for file in files
        ]

    def info(self, commit: Commit) -> dict[str, Any]:
        """The description of the model at a commit."""
        return {
            **{"_id": self.name, "id": self.name, "modelId": self.name, "author": self.name.split("/")[0]},
            **{"sha": commit.oid, "private": self.private, "gated": False, "disabled": False, "tags": []},
            **{"createdAt": DATE, "lastModified": DATE, "downloads": 0, "likes": 0},
            "siblings": [file.sibling(path) for path, file in sorted(commit.files.items())],
        }

    def refs(self) -> dict[str, Any]:
        """Every branch and tag with its commit."""

        def listed(kind: str, names: dict[str, str]) -> list[dict[str, str]]:
            return [{"name": n, "ref": f"refs/{kind}/{n}", "targetCommit": oid} for n, oid in names.items()]

        return {"branches": listed("heads", self.branches), "tags": listed("tags", self.tags), "converts": []}
