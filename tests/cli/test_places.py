"""Every command that writes looks at the place before it loads anything, and two runs never write into one."""

from __future__ import annotations

from pathlib import Path

import pytest

pytest.importorskip("gguf")
from hf_longctx.hub import convert
from tests.cli.test_cli import complaint, run
from tests.hub.tiny import write_gguf
from tests.storage.test_files import held

FILES = ["--document", "python-docs", "--questions", "QUESTIONS"]
XL3M = ["--method", "xl3m", "--document", "python-docs", "--question", "a"]
# a model that is not there, which who looks for it first says
COMMANDS: dict[str, list[str]] = {
    "eval ppl": ["eval", "NONE", "--task", "ppl", "--lengths", "2k", "--out"],
    "eval suite": ["eval", "NONE", "--task", "kv", "--lengths", "2k", "--out"],
    "lm-eval": ["lm-eval", "NONE", "--tasks", "mine", "--out"],
    "extend": ["extend", "NONE", "--method", "lm_infinite", "--out"],
    "clip stretch": ["clip", "stretch", "NONE", "--out"],
    "clip convert": ["clip", "convert", "NONE", "--out"],
    "plan": ["plan", "NONE", "--length", "2k", "--out"],
    "demo": ["demo", "--short", "--out"],
    "report": ["report", "REPORT", "--out"],
    "ask": ["ask", "NONE", *FILES, "--prefix-cache"],
}
LOCKED = {
    "eval ppl": "folder", "eval suite": "folder", "lm-eval": "folder", "demo": "folder", "ask": "file", "xl3m": "file",
}  # fmt: skip


@pytest.fixture(autouse=True)
def _installed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("hf_longctx.evaluation.harness.check_installed", lambda: None)


def filled(command: list[str], folder: Path) -> list[str]:
    (folder / "questions.txt").write_text("Why?")
    names = {"NONE": "none", "QUESTIONS": "questions.txt", "REPORT": "report"}
    return [str(folder / names[part]) if part in names else part for part in command]


@pytest.mark.parametrize("name", COMMANDS)
def test_a_place_that_cannot_be_written_is_said_with_the_true_reason_before_anything_is_loaded(
    tmp_path: Path, name: str
) -> None:
    command = filled(COMMANDS[name], tmp_path)
    (tmp_path / "file").write_text("mine")
    before = sorted(tmp_path.rglob("*"))
    for place in (tmp_path / "file", tmp_path / "file" / "a" / "b"):
        said = complaint(run(*command, place))
        assert "file" in said
        assert "none" not in said
        assert "space" not in said
        assert "is a file" in said or "a file in the way" in said or "expected a folder, and it is a file" in said
    assert sorted(tmp_path.rglob("*")) == before
    if Path("/proc").is_dir():  # where nobody can make a folder
        said = complaint(run(*command, "/proc/hf_longctx/out"))
        assert "cannot be written (" in said
        assert "space" not in said


@pytest.mark.parametrize("name", LOCKED)
def test_the_second_run_into_one_place_says_so_and_stops(tmp_path: Path, name: str) -> None:
    pytest.importorskip("fcntl")
    known = {**COMMANDS, "ask": ["ask", "NONE", *FILES, "--out"], "xl3m": ["generate", "NONE", *XL3M, "--scores"]}
    process = held(tmp_path / "out", LOCKED[name])
    try:
        said = complaint(run(*filled(known[name], tmp_path), tmp_path / "out"))
        assert "another run is writing there now" in said
    finally:
        process.kill()
        process.wait()
    if name != "demo":
        assert "none" in complaint(run(*filled(known[name], tmp_path), tmp_path / "out")), "a killed run leaves no lock"


def test_an_interrupted_eval_says_that_the_same_command_continues(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from hf_longctx.evaluation.tasks import ppl

    model = str(convert(write_gguf(tmp_path / "tiny.gguf"), cache_dir=tmp_path / "cache"))
    (tmp_path / "text.txt").write_text("the hall of hell, 007. " * 200)
    command = [
        "eval", model, "--task", "ppl", "--lengths", "64,0.125k", "--window", "32", "--task-set", "n_targets=16",
        "--task-set", "documents=1", "--text", str(tmp_path / "text.txt"), "--out", str(tmp_path / "out"),
        "--device", "cpu",
    ]  # fmt: skip
    measured, count = ppl._Spans.value, []

    def stopping(*given: object) -> object:
        if len(count) == 1:
            raise KeyboardInterrupt
        count.append(1)
        return measured(*given)

    with monkeypatch.context() as patch:
        patch.setattr(ppl._Spans, "value", stopping)
        result = run(*command)
    assert result.exit_code == 130
    said = " ".join(result.stderr.split())
    assert f"interrupted. What is finished is kept in {tmp_path / 'out'}: the same command continues" in said
    again = run(*command)
    assert again.exit_code == 0, again.output
    assert (tmp_path / "out" / "results.json").is_file()
    assert "━━━━━━ " not in again.output, "no bar without a terminal"
    assert "Loading weights" not in again.stderr
