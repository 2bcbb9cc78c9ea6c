"""What is said of a folder and of a file with a token before anything is sent."""

from __future__ import annotations

import json
import traceback
from pathlib import Path

import pytest

from hf_longctx.hub import unfit
from hf_longctx.hub.upload import planned, refuse_unfit, token_from
from tests.hub.client import GOOD, WRONG, write_model


@pytest.fixture
def model(tmp_path: Path) -> Path:
    return write_model(tmp_path / "model")


@pytest.mark.parametrize("name", ["pytorch_model.bin", "a/b.pt", "x.PTH", "x.ckpt", "x.pkl", "optimizer.pickle"])
def test_pickles(model: Path, name: str) -> None:
    refuse_unfit(model)
    (model / name).write_bytes(b"")
    with pytest.raises(ValueError, match=f"{name} is a pickle"):
        refuse_unfit(model)


@pytest.mark.parametrize(
    "name",
    [
        ".env",
        ".env.local",
        "token",
        "a/Token.txt",
        "key.pem",
        "id_rsa",
        "a/id_ed25519.old",
        ".netrc",
        "credentials.json",
    ],
)
def test_names_of_secrets(model: Path, name: str) -> None:
    (model / name).write_text("")
    with pytest.raises(ValueError, match=f"{name} looks like a secret"):
        refuse_unfit(model)


def test_tokens_in_files_are_found_and_not_shown(model: Path) -> None:
    (model / "a" / "b" / "run.sh").write_text("# hf_longctx, hf_hub_download_of_a_file\n")
    refuse_unfit(model)
    (model / "a" / "b" / "run.sh").write_text(f"export HF_TOKEN={GOOD}\n")
    with pytest.raises(ValueError, match=r"a/b/run\.sh contains what looks like") as caught:
        refuse_unfit(model)
    assert GOOD not in "".join(traceback.format_exception(caught.value))


def test_folders_without_a_model(model: Path, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="is not a folder"):
        refuse_unfit(tmp_path / "nowhere")
    with pytest.raises(ValueError, match="is not a folder"):
        refuse_unfit(model / "config.json")
    (model / "model.safetensors").unlink()
    with pytest.raises(ValueError, match="no weights"):
        refuse_unfit(model)
    (model / "config.json").unlink()
    with pytest.raises(ValueError, match="holds no model"):
        refuse_unfit(model)
    (model / "custom_generate").mkdir()
    (model / "custom_generate" / "generate.py").write_text("")
    refuse_unfit(model)


def test_a_file_over_the_limit(model: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(unfit, "FILE_LIMIT", 999)
    with pytest.raises(ValueError, match=r"model\.safetensors has .* GB"):
        refuse_unfit(model)


@pytest.mark.parametrize(
    ("base", "says"),
    [
        ("owner/model", None),
        ("gpt2", None),
        ("/data/base", "is no Hub id"),
        ("./base", "is no Hub id"),
        ("out/runs/base", "is no Hub id"),
        ("C:\\base", "is no Hub id"),
        ("FOLDER", "a folder on this computer"),
        (None, "expected a Hub id"),
    ],
)
def test_the_base_of_an_adapter(tmp_path: Path, base: str | None, says: str | None) -> None:
    adapter = write_model(tmp_path / "adapter", weights="adapter_model.safetensors")
    base = str(tmp_path) if base == "FOLDER" else base
    (adapter / "adapter_config.json").write_text(json.dumps({"base_model_name_or_path": base}))
    if says is None:
        refuse_unfit(adapter)
        return
    with pytest.raises(ValueError, match=says):
        refuse_unfit(adapter)


def test_the_settings_of_an_adapter_that_are_not_json(tmp_path: Path) -> None:
    adapter = write_model(tmp_path / "adapter", weights="adapter_model.safetensors")
    for content, says in (("{", r"adapter_config\.json is not JSON"), ("[]", r"adapter_config\.json holds a list")):
        (adapter / "adapter_config.json").write_text(content)
        with pytest.raises(ValueError, match=says):
            refuse_unfit(adapter)


def test_several_pickles_are_named_at_once(model: Path) -> None:
    for name in ("optimizer.pt", "training_args.bin"):
        (model / name).write_bytes(b"")
    with pytest.raises(ValueError, match=r"optimizer\.pt is a pickle.*1 more: training_args\.bin.*remove the pickles"):
        refuse_unfit(model)
    (model / "model.safetensors").unlink()
    with pytest.raises(ValueError, match="save it again"):
        refuse_unfit(model)


@pytest.mark.parametrize(("target", "says"), [("nowhere", "a file that is not there"), ("a", "a folder")])
def test_links_that_would_be_left_out_are_told(model: Path, target: str, says: str) -> None:
    (model / "link").symlink_to(model / target)
    with pytest.raises(ValueError, match=f"link is a link to {says}"):
        planned(model)


def test_planned_lists_every_level_and_leaves_out_git(model: Path) -> None:
    (model / ".git").mkdir()
    (model / ".git" / "HEAD").write_text("ref")
    (model / "a" / ".cache").mkdir()
    (model / "a" / ".cache" / "x").write_text("x")
    (model / "empty.safetensors").write_bytes(b"")
    assert planned(model) == [
        ("README.md", 35, False),
        ("a/b/note.txt", 12, False),
        ("config.json", 2, False),
        ("empty.safetensors", 0, False),
        ("model.safetensors", 1000, True),
    ]


# -- the file with the token -----------------------------------------------------------------------------------------


def test_token_of_a_file(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    file = tmp_path / "secret"
    file.write_text(f"\n{GOOD}\r\n")
    file.chmod(0o600)
    assert token_from(file) == GOOD
    assert caplog.text == ""
    file.chmod(0o644)
    assert token_from(str(file)) == GOOD
    assert "other users of this computer can read the token" in caplog.text
    assert GOOD not in caplog.text


@pytest.mark.parametrize(
    ("content", "says"),
    [
        (b"", "has 0 lines"),
        (b" \n\n", "has 0 lines"),
        (f"{GOOD}\n{WRONG}\n".encode(), "has 2 lines"),
        (f"HF_TOKEN = {GOOD}\n".encode(), "spaces or other characters"),
        (GOOD.encode() + b"\xff", "spaces or other characters"),
    ],
)
def test_token_files_that_are_refused(tmp_path: Path, content: bytes, says: str) -> None:
    (tmp_path / "secret").write_bytes(content)
    with pytest.raises(ValueError, match=says) as caught:
        token_from(tmp_path / "secret")
    assert GOOD not in "".join(traceback.format_exception(caught.value))


def test_a_token_file_that_is_not_there(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError):
        token_from(tmp_path / "none")
