"""The recipe that replays a file's history, on a tiny model."""

from __future__ import annotations

import json
import subprocess
from pathlib import Path

import pytest

from recipes.edit_history.replay import main, unexpected
from recipes.edit_history.versions import from_git, from_two


def test_smoke(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    assert main(["--smoke", "--out", str(tmp_path / "result.json")]) == 0
    assert capsys.readouterr().out.endswith("as expected\n")
    data = json.loads((tmp_path / "result.json").read_text())
    assert len(data["changes"]) == 6
    assert data["rows"][0]["what"] == "changes"


def test_what_is_unexpected_is_said() -> None:
    assert unexpected({"a": 3.0}, {"a": {"value": 1, "tolerance": 0.5}}) == ["a: 3, expected 1 +- 0.5"]


def test_two_files_a_change_at_a_time() -> None:
    old, new = "a\nb\nc\nd\ne\n", "a\nB\nB\nc\ne\nf\n"
    versions = from_two(old, new)
    assert versions == [old, "a\nB\nB\nc\nd\ne\n", "a\nB\nB\nc\ne\n", new]


def test_versions_from_git_follow_a_rename(tmp_path: Path) -> None:
    def git(*words: str) -> None:
        who = ["-c", "user.name=n", "-c", "user.email=e"]
        subprocess.run(["git", "-C", str(tmp_path), *who, *words], check=True, capture_output=True)

    git("init", "-q")
    text = "".join(f"line {i}\n" for i in range(20))
    (tmp_path / "old.py").write_text(text)
    git("add", "."), git("commit", "-qm", "1")
    git("mv", "old.py", "new.py"), git("commit", "-qm", "2")
    (tmp_path / "new.py").write_text(text + "more\n")
    git("commit", "-qam", "3")
    assert from_git(tmp_path / "new.py", 10) == [text, text, text + "more\n"]
    (tmp_path / "other.py").write_text("")
    with pytest.raises(SystemExit, match="has no history"):
        from_git(tmp_path / "other.py", 10)


def test_bad_files() -> None:
    with pytest.raises(SystemExit):
        main(["--smoke", "a", "b", "c"])
