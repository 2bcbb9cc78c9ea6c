"""The Hub for tests holds what the client believes of the real one: one child process pushes, lists, and loads."""

from __future__ import annotations

import json
import subprocess
import sys
import urllib.request
from collections.abc import Iterator
from typing import Any

import pytest

from tests.hub.server import Hub

CLIENT = """
import json, sys
from pathlib import Path
from huggingface_hub import HfApi, hf_hub_download
api, folder, told = HfApi(), Path(sys.argv[1]), {}
api.create_repo("tester/x", private=True)
told["pushed"] = api.upload_folder(repo_id="tester/x", folder_path=folder, commit_message="all levels").oid
told["again"] = api.upload_folder(repo_id="tester/x", folder_path=folder).oid
api.create_branch("tester/x", branch="team/v2")
api.create_tag("tester/x", tag="1.0", revision="team/v2")
told["branched"] = api.upload_file(
    repo_id="tester/x", path_or_fileobj=b"v2", path_in_repo="a/note.txt", revision="team/v2"
).oid
told["refs"] = {ref.name: ref.target_commit for ref in [*api.list_repo_refs("tester/x").branches]}
told["tags"] = {ref.name: ref.target_commit for ref in api.list_repo_refs("tester/x").tags}
told["tree"] = sorted(entry.path for entry in api.list_repo_tree("tester/x", recursive=True))
told["top"] = sorted(entry.path for entry in api.list_repo_tree("tester/x"))
told["info"] = [(entry.path, entry.size) for entry in api.get_paths_info("tester/x", ["a/note.txt", "none"])]
told["titles"] = [commit.title for commit in api.list_repo_commits("tester/x")]
told["files"] = sorted(api.model_info("tester/x").siblings, key=lambda s: s.rfilename)[1].rfilename
api.auth_check("tester/x", write=True)
told["same"] = Path(hf_hub_download("tester/x", "model.safetensors")).read_bytes() == \\
    (folder / "model.safetensors").read_bytes()
told["v2"] = Path(hf_hub_download("tester/x", "a/note.txt", revision="team/v2")).read_text()
print(json.dumps(told))
"""


class Unraised(urllib.request.HTTPErrorProcessor):
    """An error of the server is an answer as well."""

    def http_response(self, request: Any, response: Any) -> Any:
        return response


@pytest.fixture(scope="module")
def hub() -> Iterator[Hub]:
    with Hub(part_size=300_000) as hub:
        hub.users["good"] = "tester"
        yield hub


@pytest.fixture(scope="module")
def told(hub: Hub, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """What the client saw: it pushed a folder of two levels, and its weights needed parts and were cut off once."""
    folder = tmp_path_factory.mktemp("folder")
    (folder / "a").mkdir()
    (folder / "a" / "note.txt").write_text("main")
    (folder / "model.safetensors").write_bytes(bytes(range(256)) * 4000)
    hub.fail("PUT", "/_part/", after=1000)
    hub.fail("GET", "/_lfs/", after=100_000)
    command = [sys.executable, "-c", CLIENT, str(folder)]
    home = tmp_path_factory.mktemp("home")
    child = subprocess.run(command, capture_output=True, text=True, env=hub.environment(home=home))
    assert child.returncode == 0, child.stderr
    return json.loads(child.stdout)


def test_a_folder_is_one_commit_and_the_same_folder_none(hub: Hub, told: dict[str, Any]) -> None:
    repo = hub.repos["tester/x"]
    assert repo.branches["main"] == told["pushed"] == told["again"]
    assert told["titles"] == ["all levels", "initial commit"]
    assert repo.at("main").files["a/note.txt"].data == b"main"


def test_parts_are_put_together_and_a_dropped_one_is_sent_again(hub: Hub, told: dict[str, Any]) -> None:
    assert told["same"]
    parts = [(path[-1], status) for method, path, status in hub.log if method == "PUT" and "/_part/" in path]
    assert sorted({number for number, status in parts if status == 200}) == ["1", "2", "3", "4"]
    assert sum(status == "dropped" for _, status in parts) == 1


def test_a_dropped_download_is_asked_for_again(hub: Hub, told: dict[str, Any]) -> None:
    got = [(path, status) for method, path, status in hub.log if method == "GET" and "/_lfs/" in path]
    assert [status for _, status in got] == ["dropped", 200]
    rest = urllib.request.Request(hub.url + got[0][0], headers={"Range": "bytes=1023000-"})
    with urllib.request.urlopen(rest) as reply:
        assert (reply.status, reply.headers["Content-Range"]) == (206, "bytes 1023000-1023999/1024000")
        assert reply.read() == (bytes(range(256)) * 4000)[-1000:]


def test_branches_and_tags(hub: Hub, told: dict[str, Any]) -> None:
    assert told["refs"] == {"main": told["pushed"], "team/v2": told["branched"]} == hub.repos["tester/x"].branches
    assert told["tags"] == {"1.0": told["pushed"]}
    assert told["v2"] == "v2"


def test_listings(told: dict[str, Any]) -> None:
    assert told["tree"] == [".gitattributes", "a", "a/note.txt", "model.safetensors"]
    assert told["top"] == [".gitattributes", "a", "model.safetensors"]
    assert told["info"] == [["a/note.txt", 4]]
    assert told["files"] == "a/note.txt"


@pytest.mark.parametrize(
    ("path", "token", "status", "says"),
    [
        ("/api/models/tester/x", "good", 200, None),
        ("/api/models/tester/x", None, 401, "RepoNotFound"),
        ("/api/models/tester/x", "stranger's", 404, "RepoNotFound"),
        ("/api/models/tester/x", "wrong", 401, None),
        ("/api/models/tester/x/auth-check", "good", 200, None),
        ("/api/models/tester/x/auth-check", "stranger's", 404, "RepoNotFound"),
        ("/api/models/tester/x/revision/none", "good", 404, "RevisionNotFound"),
        ("/tester/x/resolve/main/none.json", "good", 404, "EntryNotFound"),
        ("/api/unknown", "good", 404, None),
    ],
)
def test_who_may_read_what(
    hub: Hub, told: dict[str, Any], path: str, token: str | None, status: int, says: str | None
) -> None:
    hub.users["stranger's"] = "stranger"
    headers = {"Authorization": f"Bearer {token}"} if token else {}
    reply = urllib.request.build_opener(Unraised).open(urllib.request.Request(hub.url + path, headers=headers))
    with reply:
        assert (reply.status, reply.headers["X-Error-Code"]) == (status, says)
