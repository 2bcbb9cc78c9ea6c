"""`hf-longctx patches`: what is listed, what is looked for, and copies without defects."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from typer.testing import CliRunner

from hf_longctx.cli.main import app
from hf_longctx.upstream import patched, scripts
from hf_longctx.upstream.ledger import Defect, defects
from hf_longctx.upstream.scripts import Seen


def run(*arguments: str) -> tuple[int, str]:
    done = CliRunner().invoke(app, ["patches", *arguments])
    assert done.exception is None or isinstance(done.exception, SystemExit), done.exception
    return done.exit_code, done.output


def test_list_shows_every_entry_with_what_was_seen_of_the_installed_version() -> None:
    code, shown = run("list", "--json")
    rows = {row["id"]: row for row in json.loads(shown)}
    assert code == 0
    assert list(rows) == list(defects())
    one = defects()["0002"]
    assert rows["0002"]["seen"] == one.seen.get(one.version, "not looked at")
    assert rows["0002"]["kind"] == "shim"
    code, shown = run("list")
    assert code == 0
    assert "shim: cured at run time, when asked" in shown


@pytest.mark.parametrize(("state", "code"), [("wrong", 1), ("fixed", 0), ("not run", 0)])
def test_check_runs_the_named_scripts_and_says_by_its_exit_code_whether_a_defect_is_here(
    state: str, code: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked: list[str] = []

    def check(one: Defect) -> Seen:
        asked.append(one.id)
        return Seen(state, "words [of it]")

    monkeypatch.setattr(scripts, "check", check)
    ended, shown = run("check", "2", "yarn-truncate-per-layer")
    assert ended == code
    assert asked == ["0002", "0005"]
    assert f"{state}: words [of it]" in shown
    ended, shown = run("check", "2", "--json")
    assert ended == code
    assert [row["state"] for row in json.loads(shown)] == [state]


def test_a_script_that_fails_is_said_and_the_others_are_still_run(monkeypatch: pytest.MonkeyPatch) -> None:
    def check(one: Defect) -> Seen:
        if one.id == "0002":
            raise ImportError("cannot import name 'gone'")
        return Seen("fixed")

    monkeypatch.setattr(scripts, "check", check)
    ended, shown = run("check", "2", "5", "5")
    assert ended == 0
    assert "not run: its script fails here, ImportError: cannot import name 'gone'" in " ".join(shown.split())
    assert shown.count("0005 transformers") == 1


def test_a_folder_with_a_blank_is_quoted_in_the_line_to_paste(tmp_path: Path) -> None:
    folder = tmp_path / "my copies"
    assert run("apply", "30", "--to", str(folder))[0] == 0
    code, shown = run("apply", "30", "--to", str(folder))
    assert code == 0
    assert f"PYTHONPATH='{folder}' python" in shown


def test_apply_and_undo_make_and_remove_copies(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(
        patched, "CHECK", """print('{"0030": ["fixed", ""]}')"""
    )  # the real one: tests/ledger/test_diffs.py
    code, shown = run("apply", "30")
    assert code == 0
    assert f"PYTHONPATH={tmp_path / 'hf-longctx-patched'} python" in shown
    assert (tmp_path / "hf-longctx-patched" / "accelerate").is_dir()
    code, shown = run("undo")
    assert code == 0
    assert "is removed" in shown
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("arguments", "told"),
    [
        (("check", "packed-cash-leak"), "Did you mean 'packed-cache-leak'?"),
        (
            ("apply", "4"),
            "0004 (packed documents leak through recurrent states and convolutions) has no change to apply",
        ),
        (("undo",), "expected a folder of `hf-longctx patches apply`, and there is none"),
        (("apply", "30", "--to", "."), "expected a new folder, or one of `hf-longctx patches apply`"),
    ],
    ids=["misspelt", "no change", "nothing to undo", "a folder of something else"],
)
def test_what_cannot_be_done_is_one_line(
    arguments: tuple[str, ...], told: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "mine.txt").touch()
    code, shown = run(*arguments)
    assert code == 2
    assert told in shown.replace("\n", " ")
    assert [path.name for path in tmp_path.iterdir()] == ["mine.txt"]
