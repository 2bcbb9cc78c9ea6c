"""A process that uploads to the Hub for tests, and folders for it."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

from tests.hub.lines import Lines
from tests.hub.server import Hub

GOOD, WRONG = "hf_" + "g" * 34, "hf_" + "w" * 34

CLIENT = """
import json, os, sys, time, traceback
time.sleep = lambda seconds: None  # the client waits 23 s in all between its tries
from huggingface_hub import HfApi
from hf_longctx.hub import upload as room
assert not {"torch", "transformers"} & sys.modules.keys()
refs = room._refs
def meddled(api, name):  # someone else's commit after we have looked
    found = refs(api, name)
    HfApi().upload_file(repo_id=name, path_or_fileobj=b"theirs", path_in_repo="theirs.txt")
    return found
for line in sys.stdin:
    case = json.loads(line)
    room._refs = meddled if case.pop("meddled") else refs
    kept = os.environ.pop("HF_TOKEN", None) if case.pop("signed_out") else None
    try:
        told = vars(room.upload(**case))
    except Exception as error:
        told = {"kinds": [kind.__name__ for kind in type(error).__mro__], "text": str(error)}
        traceback.print_exc()
    if kept:
        os.environ["HF_TOKEN"] = kept
    print(json.dumps(told), flush=True)
"""


class Client(Lines):
    """A process that uploads what it is told to. What it prints is looked through for tokens when it ends."""

    def __init__(self, environment: dict[str, str], errors: Path) -> None:
        super().__init__(CLIENT, environment, errors, (GOOD, WRONG))

    def upload(self, folder: Path, repo_id: str, **options: Any) -> dict[str, Any]:
        case = {"folder": str(folder), "repo_id": repo_id, "meddled": False, "signed_out": False, **options}
        return self.tell(case)

    def refused(self, kind: str, folder: Path, repo_id: str, **options: Any) -> str:
        """The one line of an error of this kind."""
        told = self.upload(folder, repo_id, **options)
        assert "text" in told, told
        assert kind in told["kinds"]
        assert "\n" not in told["text"]
        return told["text"]


def write_model(folder: Path, weights: str = "model.safetensors", size: int = 1000) -> Path:
    (folder / "a" / "b").mkdir(parents=True)
    (folder / "config.json").write_text("{}")
    (folder / "README.md").write_text("---\nlibrary_name: transformers\n---\n")
    (folder / "a" / "b" / "note.txt").write_text("three levels")
    (folder / weights).write_bytes(os.urandom(size))
    return folder


def counted(hub: Hub, method: str, part: str) -> int:
    """How many requests were answered, or dropped after their work was done."""
    return sum(method == m and part in path for m, path, _ in hub.log)


def files_at(hub: Hub, name: str, revision: str = "main") -> dict[str, bytes]:
    return {path: file.data for path, file in hub.repos[name].at(revision).files.items()}


def local(folder: Path) -> dict[str, bytes]:
    return {f.relative_to(folder).as_posix(): f.read_bytes() for f in folder.rglob("*") if f.is_file()}
