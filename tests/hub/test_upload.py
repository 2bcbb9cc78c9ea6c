"""A folder is published whole or not at all, and every failure is one line that says what is on the Hub now."""

from __future__ import annotations

import os
import urllib.request
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from hf_longctx.hub.upload import planned
from tests.hub.client import GOOD, WRONG, Client, counted, files_at, local, write_model
from tests.hub.server import Hub
from tests.hub.server_repos import File

PART = 4 * 2**20


@pytest.fixture(scope="module")
def shared() -> Iterator[Hub]:
    with Hub(part_size=PART) as hub:
        hub.users[GOOD] = "tester"
        yield hub


@pytest.fixture
def hub(shared: Hub) -> Iterator[Hub]:
    shared.log.clear()
    yield shared
    shared.faults.clear()


@pytest.fixture(scope="module")
def client(shared: Hub, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Client]:
    home = tmp_path_factory.mktemp("home")
    client = Client(shared.environment(GOOD, home=home), home / "errors")
    yield client
    client.end()


@pytest.fixture
def model(tmp_path: Path) -> Path:
    """A folder of three levels, whose content the Hub has never seen."""
    return write_model(tmp_path / "model")


# -- what is published -----------------------------------------------------------------------------------------------


def test_all_levels_are_one_commit(hub: Hub, client: Client, model: Path) -> None:
    told = client.upload(model, "tester/one", message="the model")
    repo = hub.repos["tester/one"]
    assert [commit.title for commit in repo.history(repo.at("main"))] == ["the model", "initial commit"]
    assert files_at(hub, "tester/one").items() >= local(model).items()
    assert told == {
        **{"repo_id": "tester/one", "url": f"{hub.url}/tester/one", "commit": repo.branches["main"]},
        **{"revision": "main", "tag": None, "unchanged": False, "deleted": []},
    }
    assert (counted(hub, "POST", "/repos/create"), counted(hub, "POST", "/commit/")) == (1, 1)


def test_a_name_alone_belongs_to_the_user_of_the_token(hub: Hub, client: Client, model: Path) -> None:
    assert client.upload(model, "alone")["repo_id"] == "tester/alone"
    assert files_at(hub, "tester/alone").items() >= local(model).items()


def test_large_files_go_to_lfs_in_parts_as_planned(hub: Hub, client: Client, tmp_path: Path) -> None:
    model = write_model(tmp_path / "model", size=2 * PART + 1)
    (model / "tokenizer.json").write_bytes(b" " * (10 * 2**20 + 1))
    assert client.upload(model, "tester/large")["unchanged"] is False
    assert files_at(hub, "tester/large").items() >= local(model).items()
    assert counted(hub, "PUT", "/_part/") == 3 + 3
    stored = {path: file.lfs for path, file in hub.repos["tester/large"].at("main").files.items()}
    assert {path: lfs for path, _, lfs in planned(model)}.items() <= stored.items()
    assert {path for path, lfs in stored.items() if lfs} == {"model.safetensors", "tokenizer.json"}


def test_private_needs_a_token_to_be_read(hub: Hub, client: Client, model: Path) -> None:
    client.upload(model, "tester/private", private=True)
    address = f"{hub.url}/tester/private/resolve/main/config.json"
    with pytest.raises(urllib.error.HTTPError, match="401"):
        urllib.request.urlopen(address)
    with_token = urllib.request.Request(address, headers={"Authorization": f"Bearer {GOOD}"})
    with urllib.request.urlopen(with_token) as reply:
        assert reply.read() == b"{}"


def test_private_is_not_promised_of_a_public_repository(hub: Hub, client: Client, model: Path) -> None:
    before = client.upload(model, "tester/public")["commit"]
    (model / "config.json").write_text('{"new": 1}')
    text = client.refused("ValueError", model, "tester/public", private=True, update=True)
    assert "tester/public exists and is public" in text
    assert hub.repos["tester/public"].branches == {"main": before}


def test_branch_and_tag(hub: Hub, client: Client, model: Path) -> None:
    main = client.upload(model, "tester/refs", tag="v1.0")["commit"]
    (model / "config.json").write_text('{"longer": true}')
    told = client.upload(model, "tester/refs", revision="longer", tag="v2.0", update=True)
    repo = hub.repos["tester/refs"]
    assert repo.branches == {"main": main, "longer": told["commit"]}
    assert repo.tags == {"v1.0": main, "v2.0": told["commit"]}
    assert repo.at("longer").parent == main
    assert told["url"] == f"{hub.url}/tester/refs/tree/longer"
    assert b"longer" in files_at(hub, "tester/refs", "longer")["config.json"]


def test_a_tag_or_branch_name_that_is_taken_is_refused_before_anything_is_sent(
    hub: Hub, client: Client, model: Path
) -> None:
    client.upload(model, "tester/taken", tag="v1")
    (model / "model.safetensors").write_bytes(b"new")
    before, sent = dict(hub.repos["tester/taken"].branches), counted(hub, "PUT", "/_lfs/")
    assert "another commit" in client.refused("ValueError", model, "tester/taken", tag="v1", update=True)
    assert "is a tag" in client.refused("ValueError", model, "tester/taken", revision="v1", update=True)
    text = client.refused("ValueError", model, "tester/taken", revision="new", tag="v1", update=True)
    assert "another commit" in text
    assert hub.repos["tester/taken"].branches == before
    assert counted(hub, "PUT", "/_lfs/") == sent


def test_update_replaces_what_would_be_loaded_and_keeps_the_rest(hub: Hub, client: Client, model: Path) -> None:
    client.upload(model, "tester/update")
    repo = hub.repos["tester/update"]
    stale = ("model-00001-of-00002.safetensors", "model.safetensors.index.json", "adapter_config.json")
    kept = ("picture.png", "a/model.safetensors", "extra.safetensors")
    added = dict.fromkeys((*stale, *kept, "modeling_hf_longctx.py"), File(b"old"))
    repo.commit("main", "theirs", {**repo.at("main").files, **added})
    hub.log.clear()
    text = client.refused("ValueError", model, "tester/update")
    assert "tester/update exists already" in text
    assert "--update" in text
    told = client.upload(model, "tester/update", update=True)
    assert set(told["deleted"]) == {*stale, "modeling_hf_longctx.py"}
    assert counted(hub, "POST", "/commit/") == 1
    assert files_at(hub, "tester/update").keys() == {".gitattributes", *local(model), *kept}


def test_an_update_keeps_a_shim_that_the_folder_has(hub: Hub, client: Client, model: Path) -> None:
    (model / "modeling_hf_longctx.py").write_text("old = 1\n")
    client.upload(model, "tester/shim")
    (model / "modeling_hf_longctx.py").write_text("new = 1\n")
    assert client.upload(model, "tester/shim", update=True)["deleted"] == []
    assert files_at(hub, "tester/shim")["modeling_hf_longctx.py"] == b"new = 1\n"


def test_a_procedure_is_not_put_beside_a_model(hub: Hub, client: Client, model: Path, tmp_path: Path) -> None:
    client.upload(model, "tester/both")
    procedure = tmp_path / "procedure"
    (procedure / "custom_generate").mkdir(parents=True)
    (procedure / "custom_generate" / "generate.py").write_text("")
    before = files_at(hub, "tester/both")
    assert "repository of its own" in client.refused("ValueError", procedure, "tester/both", update=True)
    assert files_at(hub, "tester/both") == before


def test_the_same_again_makes_no_commit_and_can_add_the_tag(hub: Hub, client: Client, model: Path) -> None:
    commit = client.upload(model, "tester/same")["commit"]
    hub.log.clear()
    told = client.upload(model, "tester/same", update=True, tag="late")
    assert (told["unchanged"], told["commit"]) == (True, commit)
    assert counted(hub, "POST", "/commit/") == counted(hub, "POST", "/preupload/") == 0
    assert hub.repos["tester/same"].tags == {"late": commit}
    assert client.upload(model, "tester/same", update=True, tag="late")["commit"] == commit


# -- what goes wrong on the way --------------------------------------------------------------------------------------


def test_someone_else_was_faster(hub: Hub, client: Client, model: Path) -> None:
    before = client.upload(model, "tester/moved")["commit"]
    (model / "config.json").write_text('{"mine": 1}')
    text = client.refused("UploadError", model, "tester/moved", update=True, meddled=True)
    assert f"main has moved on, from commit {before[:7]}" in text
    assert ("POST", "/api/models/tester/moved/commit/main", 412) in hub.log
    assert files_at(hub, "tester/moved")["config.json"] == b"{}"
    assert client.upload(model, "tester/moved", update=True)["unchanged"] is False
    assert files_at(hub, "tester/moved").items() >= {"theirs.txt": b"theirs", "config.json": b'{"mine": 1}'}.items()


def test_503_twice_is_tried_again(hub: Hub, client: Client, model: Path) -> None:
    hub.fail("POST", "/preupload/", status=503, times=2)
    client.upload(model, "tester/busy")
    tries = [status for _, path, status in hub.log if "/preupload/" in path]
    assert tries == [503, 503, 200]


@pytest.mark.parametrize(
    ("method", "path", "also"),
    [
        ("POST", "/preupload/", "is still at commit"),
        ("POST", "/commit/", "is still at commit"),
        ("POST", "/repos/create", "Nothing was published"),
        ("GET", "/refs", "Nothing was published"),
    ],
)
def test_503_always(hub: Hub, client: Client, model: Path, method: str, path: str, also: str) -> None:
    name = f"tester/down-{path.strip('/').replace('/', '-')}"
    hub.fail(method, path, status=503, times=99)
    text = client.refused("UploadError", model, name)
    assert "(503)" in text
    assert also in text
    hub.faults.clear()
    assert client.upload(model, name)["unchanged"] is False  # what the first try has made is used
    assert files_at(hub, name).items() >= local(model).items()


def test_a_dropped_upload_is_tried_again(hub: Hub, client: Client, tmp_path: Path) -> None:
    model = write_model(tmp_path / "model", size=200_000)
    hub.fail("PUT", "/_lfs/", after=50_000)
    client.upload(model, "tester/once")
    assert [status for method, path, status in hub.log if "/_lfs/" in path] == ["dropped", 200]
    assert files_at(hub, "tester/once").items() >= local(model).items()


def test_uploads_that_always_drop_leave_the_branch_and_the_next_run_sends_what_is_missing(
    hub: Hub, client: Client, model: Path
) -> None:
    before = client.upload(model, "tester/dropped")["commit"]
    (model / "model.safetensors").write_bytes(os.urandom(1000))
    (model / "other.safetensors").write_bytes(os.urandom(1000))
    lost = File((model / "other.safetensors").read_bytes(), lfs=True).sha256
    hub.log.clear()
    hub.fail("PUT", f"/_lfs/{lost}", after=10, times=99)
    text = client.refused("UploadError", model, "tester/dropped", update=True)
    assert "other.safetensors" in text
    assert f"main is still at commit {before[:7]}, so nothing was published" in text
    assert hub.repos["tester/dropped"].branches == {"main": before}
    assert counted(hub, "PUT", lost) == 6
    hub.faults.clear()
    hub.log.clear()
    client.upload(model, "tester/dropped", update=True)
    assert [path for method, path, _ in hub.log if method == "PUT"] == [f"/_lfs/{lost}"]
    assert files_at(hub, "tester/dropped").items() >= local(model).items()


def test_a_commit_that_landed_although_its_answer_was_lost_is_a_success(hub: Hub, client: Client, model: Path) -> None:
    hub.fail("POST", "/commit/", after_answer=True)
    told = client.upload(model, "tester/landed", tag="v1")
    repo = hub.repos["tester/landed"]
    assert ("POST", "/api/models/tester/landed/commit/main", "dropped") in hub.log
    assert told["commit"] == repo.branches["main"] == repo.tags["v1"]
    assert len(repo.commits) == 2
    assert files_at(hub, "tester/landed").items() >= local(model).items()


def test_a_commit_that_did_not_land_is_said_and_the_next_run_sends_no_weights(
    hub: Hub, client: Client, model: Path
) -> None:
    hub.fail("POST", "/commit/", after=100)
    text = client.refused("UploadError", model, "tester/lost")
    repo = hub.repos["tester/lost"]
    assert f"main is still at commit {repo.branches['main'][:7]}, so nothing was published" in text
    assert len(repo.commits) == 1
    hub.log.clear()
    client.upload(model, "tester/lost")
    assert counted(hub, "PUT", "") == 0
    assert counted(hub, "POST", "/commit/") == 1
    assert files_at(hub, "tester/lost").items() >= local(model).items()


def test_a_commit_of_which_the_hub_tells_nothing_is_said_to_be_unknown(hub: Hub, client: Client, model: Path) -> None:
    hub.fail("POST", "/commit/", after_answer=True)
    hub.fail("GET", "/refs", times=99, skip=1)
    assert "is unknown" in client.refused("UploadError", model, "tester/unknown")
    hub.faults.clear()
    assert client.upload(model, "tester/unknown", update=True)["unchanged"] is True


def test_a_tag_that_fails_says_that_the_model_is_published(hub: Hub, client: Client, model: Path) -> None:
    hub.fail("POST", "/tag/", status=500)
    text = client.refused("UploadError", model, "tester/untagged", tag="v1")
    commit = hub.repos["tester/untagged"].branches["main"]
    assert f"commit {commit[:7]} is published on main, but the tag 'v1' was not made" in text
    assert client.upload(model, "tester/untagged", tag="v1", update=True)["unchanged"] is True
    assert hub.repos["tester/untagged"].tags == {"v1": commit}


def test_a_card_that_the_hub_refuses(hub: Hub, client: Client, model: Path) -> None:
    hub.fail("POST", "/validate-yaml", status=400)
    text = client.refused("ValueError", model, "tester/card")
    assert "Invalid metadata in README.md" in text
    assert counted(hub, "POST", "/preupload/") == 0


# -- who may not, and where there is no Hub --------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("repo_id", "options", "kind", "says"),
    [
        ("tester/no", {"token": WRONG}, "UploadError", "does not accept the token (401). Sign in with `hf auth login`"),
        ("tester/no", {"token": "two words"}, "ValueError", "spaces or other characters that no token has"),
        ("tester/no", {"signed_out": True}, "UploadError", "no token was given"),
        ("other/no", {}, "UploadError", "may not write to 'other' (403)"),
        ("tester/my model", {}, "ValueError", "'tester/my model' cannot be a repository"),
        ("a/b/c", {}, "ValueError", "'a/b/c' cannot be a repository"),
        ("tester/no", {"revision": "refs/pr/1"}, "ValueError", "cannot be the name of a branch"),
        ("tester/no", {"revision": "0" * 40}, "ValueError", "cannot be the name of a branch"),
        ("tester/no", {"tag": "a b"}, "ValueError", "cannot be the name of a tag"),
    ],
)
def test_refused(
    hub: Hub, client: Client, model: Path, repo_id: str, options: dict[str, Any], kind: str, says: str
) -> None:
    assert says in client.refused(kind, model, repo_id, **options)
    assert repo_id not in hub.repos
    assert kind == "UploadError" or not hub.log


def test_an_unfit_folder_is_refused_before_any_request(hub: Hub, client: Client, model: Path) -> None:
    (model / "training_args.bin").write_bytes(b"")
    assert "training_args.bin is a pickle" in client.refused("ValueError", model, "tester/unfit")
    assert hub.log == []


@pytest.mark.parametrize("offline", [True, False])
def test_no_hub(hub: Hub, model: Path, tmp_path: Path, offline: bool) -> None:
    environment = hub.environment(GOOD, home=tmp_path, offline=offline)
    away = Client({**environment, "HF_ENDPOINT": hub.url if offline else "http://127.0.0.1:1"}, tmp_path / "errors")
    text = away.refused("UploadError", model, "tester/away")
    away.end()
    assert ("HF_HUB_OFFLINE is set" if offline else "the connection to http://127.0.0.1:1 failed") in text
    assert "Nothing was published" in text
    assert hub.log == []
